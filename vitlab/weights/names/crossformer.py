"""Names of cheerss/CrossFormer's checkpoints, whose merging ends the stage before."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="cheerss/CrossFormer",
        rules=(
            Rule("^patch_embed.norm.", "^embed_norm."),
            Rule("^layers.{i}.downsample.norm.", "^layers.{i+1}.norm."),
            Rule("^layers.{i}.downsample.reductions.", "^layers.{i+1}.reductions.projs."),
            Rule(".pos.pos{i}.0.", ".pos.norms.{i-1}."),
            Rule(".pos.pos{i}.2.", ".pos.layers.{i-1}."),
        ),
        ignored=(r"\.biases$", r"relative_position_index$", r"attn_mask$"),  # these follow from the group size
    ),
)

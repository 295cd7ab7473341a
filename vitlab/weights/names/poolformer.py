"""Names of timm's `poolformer_*` and of sail-sg/poolformer's checkpoints, in which blocks and
down-sampling take turns.
"""

from vitlab.weights.rules import NameMap, Rule, pointwise

_MLP = pointwise(".mlp.fc{i}")
MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^stem.conv.", "^stages.0.downsample."),
            Rule("^stages.{i+1}.downsample.conv.", "^stages.{i+1}.downsample."),
            Rule(".layer_scale{i}.scale$", ".ls{i}.gamma$"),
            Rule("^head.norm.", "^norm."),
            Rule("^head.fc.", "^head."),
            *_MLP,
        ),
    ),
    NameMap(
        source="sail-sg/poolformer",
        rules=(
            Rule("^patch_embed.proj.", "^stages.0.downsample."),
            Rule("^network.{2i+1}.proj.", "^stages.{i+1}.downsample."),
            Rule("^network.{2i}.", "^stages.{i}.blocks."),
            Rule(".layer_scale_{i}$", ".ls{i}.gamma$"),
            *_MLP,
        ),
    ),
)

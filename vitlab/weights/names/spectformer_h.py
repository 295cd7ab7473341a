"""Names of badripatro/SpectFormers' hierarchical checkpoints, which number stages from 1."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="badripatro/SpectFormers",
        rules=(
            Rule("^patch_embed1.conv.{3i}.", "^stem.convs.{i}."),
            Rule("^patch_embed1.conv.{3i+1}.", "^stem.norms.{i}."),
            Rule("^patch_embed{i}.norm.", "^stages.{i-1}.embed_norm."),
            Rule("^patch_embed{i}.proj.", "^stages.{i-1}.proj."),
            Rule("^block{i}.", "^stages.{i-1}.blocks."),
            Rule("^norm4.", "^norm."),
            Rule("^norm{i}.", "^stages.{i-1}.norm."),
            Rule("^post_network.0.", "^class_block."),
            Rule(".dwconv.dwconv.", ".dwconv."),
        ),
        zeros=r"^aux_head\.",  # of a network without token labels, whose logits a head of zeros leaves as they are
    ),
)

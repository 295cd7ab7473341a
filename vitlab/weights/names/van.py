"""Names of Visual-Attention-Network/VAN-Classification's checkpoints.

Their parts number the stages from 1.
"""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="Visual-Attention-Network/VAN-Classification",
        rules=(
            Rule("^patch_embed{i}.", "^stages.{i-1}.patch_embed."),
            Rule("^block{i}.", "^stages.{i-1}.blocks."),
            Rule("^norm{i}.", "^stages.{i-1}.norm."),
            Rule(".layer_scale_{i}$", ".ls{i}.gamma$"),
            Rule(".dwconv.dwconv.", ".dwconv."),
            *pointwise(".attn.proj_{i}", ".spatial_gating_unit.conv1", ".mlp.fc{i}"),
        ),
    ),
)

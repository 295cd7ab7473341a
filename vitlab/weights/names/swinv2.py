"""Names of timm's `swinv2_*` and of microsoft/Swin-Transformer's checkpoints.

The module `swin` says where the patch merging stands.
"""

from vitlab.weights.rules import Axes, NameMap, Rule

_RULES = (
    Rule(".cpb_mlp.0.", ".cpb_fc1."),
    Rule(".cpb_mlp.2.", ".cpb_fc2."),
    Rule(".logit_scale$", ".logit_scale$", Axes("n11", "n")),
)
_IGNORED = (r"relative_position_index$", r"relative_coords_table$", r"attn_mask$", r"k_bias$")  # these follow from the architecture
MAPS = (
    NameMap(source="timm", rules=(Rule("^head.fc.", "^head."), *_RULES), ignored=_IGNORED),
    NameMap(
        source="microsoft/Swin-Transformer",
        rules=(Rule("^layers.{i}.downsample.", "^layers.{i+1}.downsample."), *_RULES),
        ignored=_IGNORED,
    ),
)

"""Names of timm's `swinv2_*` and of microsoft/Swin-Transformer's checkpoints; see `swin` for where the merging stands."""

import numpy as np

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^head\.fc\.", "head."),
    Rule(r"\.cpb_mlp\.0\.", ".cpb_fc1."),
    Rule(r"\.cpb_mlp\.2\.", ".cpb_fc2."),
    Rule(r"\.logit_scale$", ".logit_scale", np.ravel),
)
AUTHORS_RULES = (
    Rule(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    *RULES,
)
IGNORED = (r"relative_position_index$", r"relative_coords_table$", r"attn_mask$", r"k_bias$")  # follow from the architecture


def rules_for(names: set[str]) -> tuple[Rule, ...]:
    return AUTHORS_RULES if any(n.startswith("layers.0.downsample.") for n in names) else RULES

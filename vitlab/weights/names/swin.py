"""Names of timm's `swin_*` and of microsoft/Swin-Transformer's checkpoints.

timm puts the patch merging at the start of a stage, as here, and wraps the head; the authors put it at the end of the
stage before (their stage 0 has one, timm's has none).
"""

from vitlab.weights.rules import Rule, table_2d

RULES = (
    Rule(r"^head\.fc\.", "head."),
    Rule(r"\.relative_position_bias_table$", ".rel_pos_bias", table_2d),
)
AUTHORS_RULES = (  # used when the checkpoint has layers.0.downsample
    Rule(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    *RULES,
)
IGNORED = (r"relative_position_index$", r"attn_mask$")  # buffers that follow from the architecture


def rules_for(names: set[str]) -> tuple[Rule, ...]:
    return AUTHORS_RULES if any(n.startswith("layers.0.downsample.") for n in names) else RULES

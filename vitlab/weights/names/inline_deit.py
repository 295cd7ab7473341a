"""Names of LeapLabTHU/InLine's DeiT checkpoints."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^(cls_token|pos_embed)$", r"embed.\1"),
    Rule(r"^patch_embed\.", "embed.patch_embed."),
    Rule(r"\.residual\.(\d)\.", lambda m: f".residual{1 + int(m[1]) // 2}."),  # a GELU stands between
)
IGNORED = ()

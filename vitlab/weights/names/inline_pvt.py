"""Names of LeapLabTHU/InLine's PVT checkpoints, whose stages are counted from 1."""

from vitlab.weights.rules import Rule, square_map

RULES = (
    Rule(r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.embed.pos_map", square_map),
    Rule(r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.embed.patch_embed."),
    Rule(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    Rule(r"\.residual\.(\d)\.", lambda m: f".residual{1 + int(m[1]) // 2}."),  # a GELU stands between
)
IGNORED = ()

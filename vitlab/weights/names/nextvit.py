"""Names of timm's `nextvit_*`."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^head\.fc\.", "head."),
    Rule(r"\.patch_embed\.(conv|norm)\.", r".patch_embed.project.\1."),
)
IGNORED = ()

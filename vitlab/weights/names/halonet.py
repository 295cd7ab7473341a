"""Names of timm's `halonet_h1`; the authors published no code."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^stem\.conv1\.", "stem."),
    Rule(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    Rule(r"\.bn\.", ".norm."),
    Rule(r"\.self_attn\.pos_embed\.", ".self_attn."),
    Rule(r"^head\.fc\.", "head."),
)
IGNORED = ()

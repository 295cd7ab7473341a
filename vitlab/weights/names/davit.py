"""Names of timm's `davit_*`: a block pair is `blocks.i.0` (windows) and `blocks.i.1` (channels)."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^head\.fc\.", "head."),
    Rule(r"^head\.norm\.", "norm."),
)
IGNORED = ()

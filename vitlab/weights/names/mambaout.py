"""Names of timm's `mambaout_*`."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^head\.norm\.", "norm."),
    Rule(r"^head\.pre_logits\.fc\.", "head.fc1."),
    Rule(r"^head\.pre_logits\.norm\.", "head.norm."),
    Rule(r"^head\.fc\.", "head.fc2."),
    Rule(r"(\.blocks\.\d+)\.(fc1|fc2|conv)\.", r"\1.mixer.\2."),
)
IGNORED = ()

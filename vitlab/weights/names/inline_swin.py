"""Names of LeapLabTHU/InLine's Swin checkpoints: Swin's of its authors, and the two maps that make the kernels."""

from vitlab.weights.names import swin
from vitlab.weights.rules import Rule

RULES = (
    *swin.AUTHORS_RULES,
    Rule(r"\.residual\.(\d)\.", lambda m: f".residual{1 + int(m[1]) // 2}."),  # a GELU stands between
)
IGNORED = swin.IGNORED

"""Names of DeLightCMU/PSA's modules."""

from vitlab.weights.rules import Axes, NameMap, Rule, pointwise

_COMMON = pointwise("^conv_{x:q|v}_{y:left|right}")
_NORM = tuple(Rule(f"^conv_up.1.{leaf}$", f"^conv_up.1.{leaf}$", Axes("c11", "c")) for leaf in ("weight", "bias"))
MAPS = (
    NameMap(
        source="DeLightCMU/PSA, sequential",
        rules=(*_COMMON, *pointwise("^conv_up.0"), *_NORM, Rule("^conv_up.3.", "^conv_up.2."), *pointwise("^conv_up.2")),
        suits=r"^conv_up\.2\.",
    ),
    NameMap(source="DeLightCMU/PSA, parallel", rules=(*_COMMON, Rule("^conv_up.weight$", "^conv_up.0.weight$", Axes("oi11", "oi")))),
)

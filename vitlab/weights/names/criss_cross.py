"""Names of speedinghzl/CCNet's attention."""

from vitlab.weights.rules import NameMap, pointwise

MAPS = (NameMap(source="speedinghzl/CCNet", rules=pointwise("^{x:query|key|value}_conv")),)

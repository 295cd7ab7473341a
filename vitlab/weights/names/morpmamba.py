"""Names of this project: no checkpoint of MorpMamba is published."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="vitlab"),)

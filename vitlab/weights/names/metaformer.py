"""Names of this project: trunks with exchangeable mixers have no published checkpoint."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="vitlab"),)

"""The trunks with exchangeable mixers have no published checkpoint: the names are those of this project."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="vitlab"),)

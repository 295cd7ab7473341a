"""Names of the module that is known as ELA's, which are those here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="arXiv:2403.01123"),)

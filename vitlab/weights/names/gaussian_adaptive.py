"""Names of gioannides/Gaussian-Adaptive-Attention's block, which are those here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="gioannides/Gaussian-Adaptive-Attention"),)

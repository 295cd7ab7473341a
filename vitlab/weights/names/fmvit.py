"""Names of this project: FMViT has no published checkpoint."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="vitlab"),)

"""Names of timm's `vit_*` and `deit_*` and of the authors' DeiT checkpoints: the same as here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="timm"),)

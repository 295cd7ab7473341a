"""Names of timm's `vit_*` and `deit_*` and the authors' DeiT, which equal those here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="timm"),)

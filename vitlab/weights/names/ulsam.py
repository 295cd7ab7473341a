"""Names of Nandan91/ULSAM's module."""

from vitlab.weights.rules import NameMap, pointwise

MAPS = (NameMap(source="Nandan91/ULSAM", rules=pointwise(".conv_point")),)

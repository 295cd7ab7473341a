"""Names of zs670980918/MSA-Conv's layer."""

from vitlab.weights.rules import NameMap, pointwise

MAPS = (NameMap(source="zs670980918/MSA-Conv", rules=pointwise("^qkv_conv")),)

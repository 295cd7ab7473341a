"""Names of LeapLabTHU/InLine's Swin checkpoints: Swin's names, and the maps that make kernels."""

from vitlab.weights.names import inline_deit, swin
from vitlab.weights.rules import NameMap

MAPS = (NameMap(source=inline_deit.SOURCE, rules=(*swin.AUTHORS_RULES, *inline_deit.RESIDUAL), ignored=swin.IGNORED),)

"""Names of badripatro/SpectFormers' vanilla checkpoints and of GFNet's: the same as here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="badripatro/SpectFormers"),)

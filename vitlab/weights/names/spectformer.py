"""Names of badripatro/SpectFormers' vanilla checkpoints and GFNet's, which equal those here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="badripatro/SpectFormers"),)

"""Names of badripatro/SpectFormers' vanilla checkpoints and of GFNet's: the same as here."""

RULES = ()
IGNORED = ()

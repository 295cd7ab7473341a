"""FMViT has no published checkpoint: names are this project's own."""

RULES = ()
IGNORED = ()

"""Names of timm's `vit_*` and `deit_*` and of the authors' DeiT checkpoints: the same as here."""

RULES = ()
IGNORED = ()

"""Name maps, one per family: tensor names of published checkpoints -> names here."""

"""Names of the unofficial DependencyViT, which are those here."""

from vitlab.weights.rules import NameMap

MAPS = (NameMap(source="unofficial DependencyViT"),)

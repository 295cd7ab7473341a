"""Heads: maps of a trunk -> maps or vectors. Heads take explicit arguments, never a config."""

from vitlab.heads.table import HEADS, OnTrunk, unsupported_reason

__all__ = ["HEADS", "OnTrunk", "unsupported_reason"]

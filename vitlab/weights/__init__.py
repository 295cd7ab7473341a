"""Checkpoints of others: reading, name maps, load reports."""

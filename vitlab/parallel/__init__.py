"""Devices and processes: the mesh that a run computes on, and agreement between processes."""

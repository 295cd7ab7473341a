"""Devices and processes: the mesh that a run computes on, and what its processes agree on."""

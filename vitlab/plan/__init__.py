"""Estimates of a run on hardware that is not here: memory, FLOPs, communication, time."""

"""What a run will need on hardware that is not here: memory, FLOPs, communication, time."""

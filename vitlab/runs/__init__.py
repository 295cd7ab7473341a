"""The run folder: its identity, records and checkpoints, and the trained model in it."""

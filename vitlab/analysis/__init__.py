"""Pure functions of a model: its parameters and operations, and the peaks of devices."""

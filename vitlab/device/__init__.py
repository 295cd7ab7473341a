"""What a step does to a batch on the device before the model sees it."""

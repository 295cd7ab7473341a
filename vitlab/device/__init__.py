"""Operations that a step applies to a batch on the device before the model sees it."""

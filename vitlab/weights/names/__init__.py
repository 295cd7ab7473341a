"""One name map a family: how the tensors of its published checkpoints are called here."""

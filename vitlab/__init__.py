"""A lab bench for vision transformers in JAX."""

from vitlab.models.registry import create_model, list_models
from vitlab.weights.load import load_weights

__all__ = ["create_model", "list_models", "load_weights"]

"""A lab bench for vision transformers in JAX."""

import typing

from vitlab.models.registry import create_model, list_models
from vitlab.weights.load import load_weights

if typing.TYPE_CHECKING:
    from vitlab.runs.loaded import load_run

__all__ = ["__version__", "create_model", "list_models", "load_run", "load_weights"]

__version__ = "0.1.0"


def __getattr__(name: str) -> typing.Any:
    """`load_run` on first use: reading checkpoints takes a second to import, which a model alone does not need."""
    if name == "load_run":
        from vitlab.runs.loaded import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

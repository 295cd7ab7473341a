"""A lab bench for vision transformers in JAX."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from vitlab.models.registry import list_models
    from vitlab.runs.loaded import load_run
    from vitlab.weights.load import load_weights
    from vitlab.weights.pretrained import create_model
    from vitlab.weights.save import save_weights

__all__ = ["__version__", "create_model", "list_models", "load_run", "load_weights", "save_weights"]

__version__ = "0.1.0"

_HOMES = {
    "create_model": "vitlab.weights.pretrained",
    "list_models": "vitlab.models.registry",
    "load_run": "vitlab.runs.loaded",
    "load_weights": "vitlab.weights.load",
    "save_weights": "vitlab.weights.save",
}


def __getattr__(name: str) -> typing.Any:
    """Imports a public function on first use, since every command imports this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

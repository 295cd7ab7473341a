"""Modules that run as in evaluation, whatever they are told."""

import functools
from typing import Any

from flax import nnx

_EVALUATION = {"train": False, "use_running_average": True, "deterministic": True}  # as this project and Flax name the mode


def run_as_in_evaluation(module: nnx.Module) -> None:
    """Makes calls of the module, in place, run as in evaluation: its statistics stay, and it drops nothing.

    The modules inside it are called by it in evaluation too, but for those that its parent calls by another way; so the caller
    does this to each of them.
    """
    module.__class__ = _evaluated(type(module))


@functools.cache  # so that two modules of a class stay of one class, and run in one loop
def _evaluated(kind: type) -> type:
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return kind.__call__(self, *args, **{name: _EVALUATION.get(name, value) for name, value in options.items()})

    return type(kind.__name__, (kind,), {"__call__": call, "__doc__": kind.__doc__, "__module__": kind.__module__})

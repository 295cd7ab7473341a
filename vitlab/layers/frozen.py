"""Modules that always run as in evaluation."""

import functools
from typing import Any

from flax import nnx

_EVALUATION = {"train": False, "use_running_average": True, "deterministic": True}  # the mode's argument in this project and in Flax


def run_as_in_evaluation(module: nnx.Module) -> None:
    """Makes every call of the module run as in evaluation, in place: no statistics, no dropping.

    Submodules that the module calls with the mode as an argument run in evaluation too. A submodule
    that is called from elsewhere needs a call of this function of its own.
    """
    module.__class__ = _evaluated(type(module))


@functools.cache  # cached: two modules of one class share the new class, and may run in one loop
def _evaluated(kind: type) -> type:
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return kind.__call__(self, *args, **{name: _EVALUATION.get(name, value) for name, value in options.items()})

    return type(kind.__name__, (kind,), {"__call__": call, "__doc__": kind.__doc__, "__module__": kind.__module__})

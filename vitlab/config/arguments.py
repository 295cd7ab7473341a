"""Arguments of a part that a config names: `model.mixer_fields`, `model.plugin_fields`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pallas_kernels.command_line import near_misses
from vitlab.bounds import check_bounds, hints_of
from vitlab.config.values import typed

_GIVEN = {"self", "dim", "num_heads", "dtype", "rngs"}  # arguments that the model itself passes


def checked_arguments(
    path: tuple[str, ...], part: str, constructor: Callable[..., Any], given: Any, *, known_types: bool
) -> dict[str, Any]:
    """Checks further arguments of a part's constructor by name.

    Args:
      path: Key of the arguments, for the messages, such as ("plugin_fields",).
      part: Kind and name of the part, for the messages, such as 'mixer "window"'.
      constructor: A module's class, or a function that makes a module.
      given: The arguments.
      known_types: Whether the arguments are also checked by type and bounds, as those of the zoo's own parts are.

    Raises:
      ValueError: `given` is no mapping, the constructor has no such argument, or a value is of another type or out of bounds.
    """
    key = ".".join(path)
    if not isinstance(given, Mapping):
        raise ValueError(f"{path[0]}: {'.'.join(path[1:])}={given!r} must be a group of arguments")
    # An nnx class itself has its metaclass's signature, which accepts anything.
    function = constructor.__init__ if isinstance(constructor, type) else constructor
    parameters = inspect.signature(function).parameters
    known = parameters.keys() - _GIVEN
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints, out = hints_of(function) if known_types else {}, dict(given)
    for name in given:
        if name not in known and not takes_any:
            raise ValueError(f'{path[0]}: {part} has no argument "{name}": {near_misses(name, known)}')
        if name in hints:
            out[name] = typed(given[name], hints[name][0], (*path, name))
            check_bounds(f"{key}.{name}", out[name], hints[name][1])
    return out

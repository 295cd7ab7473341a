"""Type checks and text of config values.

Types are bool, int, float, str, Literal, tuples, unions and groups of keys.
"""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from vitlab.config.errors import ConfigError

_LONGEST = 4096  # characters of a string; no path may be longer
_SHOWN = 80  # characters of a value in an error message
_WIDEST = 2**63  # bound on the magnitude of an int, so that arrays can hold it


def typed(value: Any, hint: Any, path: tuple[str, ...], rule: str = "") -> Any:
    """The value, checked against a type and converted to it.

    Only an int to a float and a list to a tuple are converted.

    Args:
      value: Anything.
      hint: A class, a Literal, a union, or a tuple of types.
      path: Path of the key, for the message.
      rule: Text of the allowed values for the message, in place of the type.

    Raises:
      ConfigError: The value has another type, is not finite, or is an int or a string beyond the
        limits; the message names the key.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            with contextlib.suppress(ConfigError):
                return typed(value, choice, path)
    elif origin is tuple:
        hints = _hints_of_entries(hint, value)
        if hints is not None:
            return tuple(typed(v, h, path) for v, h in zip(value, hints, strict=True))
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif _is(value, hint):
        return float(value) if hint is float else value
    long = f", at most {_LONGEST} characters and none of them NUL" if isinstance(value, str) and plain_type(hint) is str else ""
    raise ConfigError(f"{'.'.join(path)}={shown(value)} must be {rule or type_name(hint)}{long}")


def _is(value: Any, hint: Any) -> bool:
    """Whether the value is an instance of a class; an int is also a float, a bool only a bool."""
    if hint is Any:
        return True
    if not isinstance(value, (int, float) if hint is float else get_origin(hint) or hint):
        return False
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, str):
        return "\0" not in value and len(value) <= _LONGEST
    return (math.isfinite(value) if isinstance(value, float) else abs(value) < _WIDEST) if isinstance(value, (int, float)) else True


def shown(value: Any) -> str:
    """The value as error messages print it, shortened."""
    if isinstance(value, int) and abs(value) >= _WIDEST:
        return f"<an integer of {value.bit_length()} bits>"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a nested huge integer, or endless nesting
        return f"<a {type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def leaf_types(cls: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The types of all keys of a tree of dataclasses, by path."""
    out, hints = {}, typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, here = hints[field.name], (*path, field.name)
        out |= leaf_types(hint, here) if dataclasses.is_dataclass(hint) else {here: hint}
    return out


def is_optional(hint: Any) -> bool:
    """Whether the type allows None."""
    return get_origin(hint) in (typing.Union, types.UnionType) and type(None) in get_args(hint)


def plain_type(hint: Any) -> Any:
    """The type without None; `object` for a union of several types."""
    choices = [choice for choice in get_args(hint) if choice is not type(None)] if is_optional(hint) else [hint]
    return choices[0] if len(choices) == 1 else object


def type_name(hint: Any) -> str:
    """The name of a type for error messages and the list of keys."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if is_optional(hint):
        return " or ".join(type_name(choice) for choice in get_args(hint) if choice is not type(None)) + " or None"
    if dataclasses.is_dataclass(hint):
        return f"a group of keys: {', '.join(field.name for field in dataclasses.fields(hint))}"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def frozen(value: Any) -> Any:
    """The value with lists converted to tuples at any depth."""
    if isinstance(value, Mapping):
        return {key: frozen(entry) for key, entry in value.items()}
    return tuple(frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _hints_of_entries(hint: Any, value: Any) -> tuple[Any, ...] | None:
    """The types of a tuple's entries; None if the value is no sequence or has another length.

    `hint` is `tuple[X, ...]` or `tuple[X, Y]`.
    """
    hints = get_args(hint)
    if not isinstance(value, (tuple, list)):
        return None
    if hints[1:] == (...,):
        return (hints[0],) * len(value)
    return hints if len(value) == len(hints) else None

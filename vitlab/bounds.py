"""Bounds of numbers, written into the types of fields: `depth: Depth`, `patch_size: Side`."""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An interval of numbers; an open end is not part of it."""

    least: int | float
    most: int | float
    open_least: bool = False
    open_most: bool = False

    def __contains__(self, value: int | float) -> bool:
        above = value > self.least if self.open_least else value >= self.least
        return above and (value < self.most if self.open_most else value <= self.most)

    def __str__(self) -> str:
        left, right = "(" if self.open_least else "[", ")" if self.open_most else "]"
        return f"in {left}{self.least}, {self.most}{right}"


_MANY = 10**6  # largest side, width or number of classes; larger numbers overflow the sizes of arrays
Count = Annotated[int, Bounds(1, _MANY)]  # number of pixels, channels, heads or tokens
CountOrZero = Annotated[int, Bounds(0, _MANY)]
Depth = Annotated[int, Bounds(1, 1000)]  # number of blocks in a row
Side = Annotated[int, Bounds(1, 1000)]  # pixels or tokens per side of a kernel, window or patch
SideOrZero = Annotated[int, Bounds(0, 1000)]
Ratio = Annotated[float, Bounds(0, 1000, open_least=True)]  # ratio of one width or size to another
Epsilon = Annotated[float, Bounds(0, 1, open_least=True)]  # summand that keeps a norm's divisor above zero
Rate = Annotated[float, Bounds(0, 1, open_most=True)]  # probability of dropping something
Share = Annotated[float, Bounds(0, 1)]  # part of a whole


@functools.cache
def hints_of(owner: Any) -> dict[str, tuple[Any, Any]]:
    """Types of a class's fields or of a function's arguments.

    Returns:
      Name -> (type without bounds, as `vitlab.config.typed` takes it; type with bounds).
    """
    plain, bounded = typing.get_type_hints(owner), typing.get_type_hints(owner, include_extras=True)
    return {name: (plain[name], bounded[name]) for name in plain}


def check_bounds(name: str, value: Any, hint: Any) -> None:
    """Checks a value, or each entry of a tuple, against the bounds in its field's type.

    Args:
      name: Name of the field, for the message.
      value: A number, a tuple of numbers, or any other value, which has no bounds.
      hint: The field's type with its bounds: `Count`, `Count | None`, `tuple[Count, ...]`.

    Raises:
      ValueError: A number is outside its bounds.
    """
    for bounds, number in _bound(value, hint):
        if number not in bounds:
            raise ValueError(f"{name}={value}{': each entry' if isinstance(value, tuple) else ''} must be {bounds}")


def _bound(value: Any, hint: Any) -> Iterator[tuple[Bounds, int | float]]:
    """Each number in a value, with the bounds that its type states for it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        yield from ((bounds, value) for bounds in arguments[1:] if isinstance(bounds, Bounds) and isinstance(value, (int, float)))
    elif isinstance(value, tuple) and typing.get_origin(hint) is tuple:
        entries = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        for entry, one in zip(value, entries, strict=True):
            yield from _bound(entry, one)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType) and not isinstance(value, str):
        for one in arguments:
            yield from _bound(value, one)

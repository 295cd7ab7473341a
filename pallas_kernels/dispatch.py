"""Chooses, at trace time, which implementation of an operator runs."""

import dataclasses
import difflib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)


class UnsupportedError(ValueError):
    """The named implementation cannot run these arguments here."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operator, with the predicate that says where it can run."""

    fn: Callable[..., Any]  # same arguments as the operator, without `implementation`
    unsupported_reason: Callable[..., str | None]  # same arguments; None means: can run here
    automatic: bool = True  # False: chosen only by name, for instance because nobody has timed it


def unsupported_array(array: Any, dtypes: Sequence[str], head_dims: Sequence[int]) -> str | None:
    """Why an array [..., head_dim] is of no type or width that a kernel takes, or None."""
    if array.dtype.name not in dtypes:
        return f"dtype {array.dtype.name} is not one of {', '.join(dtypes)}"
    if (head_dim := array.shape[-1]) not in head_dims:
        return f"{head_dim=} is not one of {', '.join(map(str, head_dims))}"
    return None


def dispatch(op_name: str, implementations: Mapping[str, Implementation], implementation: str | None, /, *args: Any, **kwargs: Any) -> Any:
    """Calls the named implementation, or the first automatic one that can run these arguments.

    Args:
      op_name: The operator's name, for messages.
      implementations: The operator's table, fastest first.
      implementation: A key of the table, which obeys or fails, or None for the first automatic one
        that can run.
      *args: The operator's positional arguments.
      **kwargs: The operator's keyword arguments, without `implementation`.

    Returns:
      What the chosen implementation returns.

    Raises:
      ValueError: The name is not in the table.
      UnsupportedError: The named implementation, or every one of them, cannot run these arguments
        here.
    """
    if implementation is not None:
        chosen = _named(op_name, implementations, implementation)
        if (reason := chosen.unsupported_reason(*args, **kwargs)) is not None:
            raise UnsupportedError(f"{op_name}: {implementation=} cannot run here: {reason}")
        return chosen.fn(*args, **kwargs)
    reasons = []
    for name, candidate in implementations.items():
        if not candidate.automatic:
            continue
        if (reason := candidate.unsupported_reason(*args, **kwargs)) is None:
            _log_choice(op_name, name, tuple(reasons))
            return candidate.fn(*args, **kwargs)
        reasons.append(f"{name}: {reason}")
    raise UnsupportedError(f"{op_name}: no implementation can run here: " + "; ".join(reasons))


def _named(op_name: str, implementations: Mapping[str, Implementation], name: str) -> Implementation:
    if name not in implementations:
        near = difflib.get_close_matches(name, implementations)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "no name is near it."
        raise ValueError(f"{op_name}: implementation={name!r} is not one of {list(implementations)}; {hint}")
    return implementations[name]


@functools.cache  # once per choice and its reasons, however often it is traced
def _log_choice(op_name: str, name: str, reasons: tuple[str, ...]) -> None:
    passed_over = f" (not {'; not '.join(reasons)})" if reasons else ""
    logger.info("%s runs %s%s", op_name, name, passed_over)

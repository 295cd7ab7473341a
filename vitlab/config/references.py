"""References to parts of the user's own: `package.module:name`, or `file.py:name` for a file.

A run's `config.json` holds the reference with the absolute path of the file, so that evaluation and
worker processes import the part from the same place, whatever folder they start in.
"""

import os
import re
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from pallas_kernels.command_line import near_misses
from vitlab.config.errors import ConfigError
from vitlab.plugins import import_file, import_named

__all__ = ["absolute", "is_reference", "load_module", "load_reference", "part_of", "short_name"]

_T = TypeVar("_T")
_WORD = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"(?P<where>[^:\0]+\.py|{_WORD}(\.{_WORD})*):(?P<name>\w+)")


def is_reference(text: str) -> bool:
    """Whether the text has the form of a reference."""
    return _REFERENCE.fullmatch(text) is not None


def short_name(text: str) -> str:
    """The name in a reference: "Shift" for "./own.py:Shift"; other texts are returned unchanged."""
    match = _REFERENCE.fullmatch(text)
    return match["name"] if match else text


def absolute(text: str) -> str:
    """A reference with the absolute path of its file; other texts are returned unchanged."""
    match = _REFERENCE.fullmatch(text)
    if match is None or not match["where"].endswith(".py"):
        return text
    return f"{os.path.abspath(os.path.expanduser(match['where']))}:{match['name']}"


def load_module(text: str) -> types.ModuleType:
    """Imports the module of a reference, which runs its code.

    Raises:
      ConfigError: The text is no reference, or there is no such file or module. Other errors of the
        module's own code pass unchanged.
    """
    match = _REFERENCE.fullmatch(absolute(text))
    if match is None:
        raise ConfigError(f'"{text}" must name a part as package.module:name or file.py:name')
    where = match["where"]
    if where.endswith(".py"):
        if not os.path.isfile(where):
            raise ConfigError(f'"{text}": there is no file {where}; put it there, or name another (a run has the name in its config.json)')
        return import_file(where)
    try:
        return import_named(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # an import inside the module failed
        raise ConfigError(f'"{text}": there is no module {error.name}; install it, or add its folder to PYTHONPATH') from error


def load_reference(text: str) -> Any:
    """The object that a reference names.

    Raises:
      ConfigError: As `load_module`; or the module has no such name, in which case similar names are
        given.
    """
    module, name = load_module(text), short_name(text)
    if not hasattr(module, name):
        names = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(f'"{text}": {module.__file__} has no "{name}": {near_misses(name, names)}')
    return getattr(module, name)


def part_of(kind: str, name: str, parts: Mapping[str, _T]) -> _T:
    """The part of a name: one of the zoo's `parts`, or the user's own.

    Args:
      kind: Kind of the part, for the message, such as "mixer".
      name: A key of `parts`, or a reference.
      parts: The zoo's parts of this kind.

    Raises:
      ConfigError: No part has this name; the message lists similar names.
    """
    if name in parts:
        return parts[name]
    if not is_reference(name):
        rule = "must be one of the zoo's, or one of your own, package.module:name or file.py:name"
        raise ConfigError(f'{kind} "{name}" {rule}: {near_misses(name, parts)}')
    return load_reference(name)

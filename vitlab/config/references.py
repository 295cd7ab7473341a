"""Parts of the user's own, named in a config: `package.module:name`, or `file.py:name` for a file that is in no package.

The same text stands in the `config.json` of a run, with the absolute path of a file, so that whatever opens the run, in any folder
and in any process, imports the part from where it was.
"""

import os
import re
import types
from typing import Any

from pallas_kernels.command_line import near_misses
from vitlab.config.errors import ConfigError
from vitlab.plugins import import_file, import_named

__all__ = ["absolute", "is_reference", "load_module", "load_reference", "short_name"]

_WORD = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"(?P<where>[^:\0]+\.py|{_WORD}(\.{_WORD})*):(?P<name>\w+)")


def is_reference(text: str) -> bool:
    """Whether the text names a part of the user's own."""
    return _REFERENCE.fullmatch(text) is not None


def short_name(text: str) -> str:
    """The name of a part without where it is: "Shift" of "./own.py:Shift"; other texts stay as they are."""
    match = _REFERENCE.fullmatch(text)
    return match["name"] if match else text


def absolute(text: str) -> str:
    """A reference whose file, if it is in one, has its absolute path; other texts stay as they are."""
    match = _REFERENCE.fullmatch(text)
    if match is None or not match["where"].endswith(".py"):
        return text
    return f"{os.path.abspath(os.path.expanduser(match['where']))}:{match['name']}"


def load_module(text: str) -> types.ModuleType:
    """Imports the module of a reference, which runs its code.

    Raises:
      ConfigError: The text is no reference, or there is no such file or module. Whatever else the module's own code raises passes.
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
            raise  # something that the module imports is missing
        raise ConfigError(f'"{text}": there is no module {error.name}; install it, or add its folder to PYTHONPATH') from error


def load_reference(text: str) -> Any:
    """The object that a reference names.

    Raises:
      ConfigError: As `load_module`; or the module has no such name, with the near misses.
    """
    module, name = load_module(text), short_name(text)
    if not hasattr(module, name):
        names = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(f'"{text}": {module.__file__} has no "{name}": {near_misses(name, names)}')
    return getattr(module, name)

"""The user's own modules: files and packages outside vitlab whose objects a config names.

A file becomes the module `vitlab.plugins.x<its path in hexadecimal>`. The name alone says where the
file lies, so that a process that unpickles an object of the file, such as a worker of the input
pipeline, finds the module by importing it.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import traceback
import types
from typing import Any

__all__ = ["import_file", "import_named", "raised_in_plugin"]

__path__: list[str] = []  # makes this module a package: Python asks the finders for modules below it
_PREFIX = f"{__name__}.x"
_imported: set[str] = set()  # outermost packages of the user's imported modules


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module of a file by the path in its name."""

    def find_spec(self, fullname: str, path: Any = None, target: types.ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        return importlib.util.spec_from_file_location(fullname, os.fsdecode(bytes.fromhex(fullname.removeprefix(_PREFIX))))


if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
    sys.meta_path.append(_Finder())


def import_file(path: str) -> types.ModuleType:
    """Imports a Python file; later calls give the same module.

    Args:
      path: Absolute path of the file.

    Raises:
      OSError: The file cannot be read.
    """
    return importlib.import_module(_PREFIX + os.fsencode(path).hex())


def import_named(name: str) -> types.ModuleType:
    """Imports a module of the user's own package, "package.module".

    Raises:
      ModuleNotFoundError: The module, or one that it imports, does not exist.
    """
    _imported.update({name.partition(".")[0]} - {"pallas_kernels", "vitlab"})
    return importlib.import_module(name)


def raised_in_plugin(error: BaseException) -> bool:
    """Whether the user's own code was running, at any depth, when the error was raised."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(_is_plugin(frame.f_globals.get("__name__", "")) for frame, _ in frames)


def _is_plugin(module: str) -> bool:
    return module.startswith(_PREFIX) or module.partition(".")[0] in _imported

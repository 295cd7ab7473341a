"""The recipes that come with the package, by name: `--config=vitlab:quickstart` needs no clone.

They are the files of the repository's `configs/`, in an installed package `vitlab.configs`.
"""

import pathlib

from vitlab.config import ConfigError, near_misses

PREFIX = "vitlab:"
_HERE = pathlib.Path(__file__).parent


def folder() -> pathlib.Path:
    """Returns the folder of the recipes: the installed one, or the one of this package's clone."""
    installed = _HERE / "configs"
    return installed if installed.is_dir() else _HERE.parent / "configs"


def names() -> list[str]:
    """Returns the names of all recipes."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def path_of(name: str) -> pathlib.Path:
    """Returns the file of a recipe.

    Raises:
      ConfigError: There is no such recipe; the message has similar names.
    """
    known = names()
    if name not in known:
        raise ConfigError(f'vitlab has no recipe "{name}": {near_misses(name, known)}')
    return folder() / f"{name}.py"

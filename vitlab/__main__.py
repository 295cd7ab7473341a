"""Lists the commands, or runs one: python -m vitlab [COMMAND ...], or the script `vitlab`."""

import ast
import os
import pathlib
import runpy
import sys
from collections.abc import Sequence

import vitlab
from vitlab import cli
from vitlab.config import ConfigError, near_misses

_HERE = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """Name of each command -> its purpose.

    A command is a module that runs and whose docstring begins "PURPOSE: python -m vitlab.NAME ...".
    """
    out = {}
    for path in sorted(_HERE.rglob("*.py")):
        text = path.read_text()
        if '__name__ == "__main__"' not in text:
            continue
        name = ".".join(path.relative_to(_HERE).with_suffix("").parts).removesuffix(".__main__")
        about, colon, _ = (ast.get_docstring(ast.parse(text)) or "").partition(f": python -m vitlab.{name} ")
        if colon and "\n" not in about:
            out[name] = about
    return out


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    known = commands()
    if not argv or argv[0] in ("-h", "--help"):
        print(_listing(known))
        return 0
    if argv[0] == "--version":
        print(vitlab.__version__)
        return 0
    name = argv[0]
    if name not in known:
        raise ConfigError(f'unknown command "{name}": {near_misses(name, known)}')
    if os.getcwd() not in sys.path:  # `python -m` adds it too: packages beside the user's configs are found
        sys.path.append(os.getcwd())
    sys.argv[:] = [f"vitlab {name}", *argv[1:]]
    runpy.run_module(f"vitlab.{name}", run_name="__main__", alter_sys=True)
    return 0


def _listing(known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {about}" for name, about in known.items()]
    return "\n".join(
        [
            f"vitlab {vitlab.__version__}: {vitlab.__doc__.splitlines()[0] if vitlab.__doc__ else ''}",
            "",
            *lines,
            "",
            "vitlab COMMAND --help, or python -m vitlab.COMMAND --help, says more.",
            "example: vitlab train --config=configs/quickstart.py --workdir=runs/quickstart",
        ]
    )


def console() -> None:
    """Entry point of the console script `vitlab`."""
    cli.run(main)


if __name__ == "__main__":
    console()

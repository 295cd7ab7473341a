"""Parts that the commands share: one-line errors, with the choices nearest to a typed name."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

EXIT_USAGE = 2  # exit status of a command with invalid arguments


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps its description's layout and prints one-line errors.

    Errors go to stderr.
    """

    def __init__(self, *, prog: str, description: str, example: str):
        """Takes the command as typed (`prog`), and the beginning and the end of `--help`."""
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, epilog=f"example: {example}", formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"error: {' '.join(message.split())} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def one_of(what: str, choices: Iterable[str]) -> Callable[[str], str]:
    """Makes the `type` of an argument that is one of `choices`; an error gives similar names.

    Args:
      what: Kind of the names in the error: "operator".
      choices: The allowed names.
    """
    known = list(choices)

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f'unknown {what} "{text}": {near_misses(text, known)}')
        return text

    return parse


def near_misses(name: str, choices: Iterable[str]) -> str:
    """End of an error about an unknown name: up to three similar choices, else all of them.

    Choices that begin with the name come first, the shortest ahead, then those with few differing
    letters.
    """
    choices = sorted(choices)
    begin = sorted((choice for choice in choices if name and choice.startswith(name)), key=len)
    close = dict.fromkeys([*begin[:3], *difflib.get_close_matches(name, choices, n=3, cutoff=0.5)])
    if close:
        return f"did you mean {', '.join(list(close)[:3])}?"
    return f"choices: {', '.join(choices[:40])}" if choices else "there are none"

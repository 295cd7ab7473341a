"""Parts that the commands share: errors of one line, with the choices nearest to what was typed."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

EXIT_USAGE = 2  # the command cannot be used as it was typed


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the layout of its description and whose errors are one line on stderr."""

    def __init__(self, *, prog: str, description: str, example: str):
        """`prog` is the command as it is typed, `description` and `example` the beginning and the end of `--help`."""
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, epilog=f"example: {example}", formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"error: {' '.join(message.split())} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def one_of(what: str, choices: Iterable[str]) -> Callable[[str], str]:
    """The `type` of an argument that names one of the choices; another name is refused with the near misses.

    Args:
      what: What the names are of, for the message: "operator".
      choices: The names.
    """
    known = list(choices)

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f'unknown {what} "{text}": {near_misses(text, known)}')
        return text

    return parse


def near_misses(name: str, choices: Iterable[str]) -> str:
    """Text to append to an error about an unknown name: up to three choices near it, or all when none is.

    Choices that begin with the name come first, the shortest before the longer ones, then those that differ by little.
    """
    choices = sorted(choices)
    begin = sorted((choice for choice in choices if name and choice.startswith(name)), key=len)
    close = dict.fromkeys([*begin[:3], *difflib.get_close_matches(name, choices, n=3, cutoff=0.5)])
    if close:
        return f"did you mean {', '.join(list(close)[:3])}?"
    return f"choices: {', '.join(choices[:40])}" if choices else "there are none"

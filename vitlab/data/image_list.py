"""Finds the image files that a command line names by files, folders, patterns and lists."""

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from vitlab.config import ConfigError
from vitlab.data.formats import extensions


def find_images(arguments: Sequence[str], lists: Sequence[pathlib.Path] = ()) -> list[str]:
    """The files that the arguments name, in their order, duplicates included.

    Args:
      arguments: Each is a file, whether it exists or not; a folder, for all images below it, sorted
        by path, without hidden ones; a pattern such as "photos/**/*.jpg", sorted; or "@list.txt", a
        list as in `lists`.
      lists: Text files in UTF-8 with an argument per line, but no further lists; relative paths
        start at the current folder.

    Raises:
      ConfigError: A list is unreadable or empty, a folder has no image, or a pattern matches
        nothing.
    """
    out: list[str] = []
    for argument in arguments:
        if argument.startswith("@"):
            out += _of_list(pathlib.Path(argument[1:]))
        else:
            out += _named(argument)
    for path in lists:
        out += _of_list(path)
    if not out:
        raise ConfigError("there is no image to look at: name files, folders, patterns, or --list=FILE")
    return out


def _of_list(path: pathlib.Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"the list {path} cannot be read: {error.strerror}") from error
    lines = [line.strip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise ConfigError(f"the list {path} is empty; it must have a path on each line")
    return [image for line in lines for image in _named(line)]


def _named(argument: str) -> list[str]:
    if os.path.isdir(argument):
        found = sorted(_walk(argument))
        if not found:
            raise ConfigError(f"the folder {argument} holds no image ({', '.join(sorted(extensions()))})")
        return found
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument]
    matches = _glob(argument)
    if not matches:
        raise ConfigError(f"the pattern {argument} matches no file")
    return [path for match in matches for path in (sorted(_walk(match)) if os.path.isdir(match) else [match])]


def _glob(pattern: str) -> list[str]:
    """The matches of a pattern, sorted, each file once.

    "**" follows symbolic links to folders, without endless loops.
    """
    found: dict[str, str] = {}
    for match in sorted(glob.glob(pattern, recursive=True), key=lambda path: (path.count(os.sep), path)):
        folder, name = os.path.split(match)
        found.setdefault(os.path.join(os.path.realpath(folder), name), match)
    return sorted(found.values())


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):  # os.walk follows no links here, which avoids loops
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions():
                yield os.path.join(root, name)

"""Checkpoints of several files: an index of tensors, or a folder."""

import json
import pathlib
from collections.abc import Sequence

INDEX_SUFFIX = ".index.json"
_LARGEST_INDEX = 2**26  # bytes


def shards_of(index: pathlib.Path) -> list[str]:
    """The names of the files, all beside the index, that hold its tensors.

    Raises:
      ValueError: It is no index, or names a file elsewhere.
    """
    return sorted(set(weight_map(index).values()))


def weight_map(index: pathlib.Path) -> dict[str, str]:
    """The file of each tensor, by the tensor's name.

    Raises:
      ValueError: See `shards_of`.
    """
    if index.stat().st_size > _LARGEST_INDEX:
        raise ValueError(f"{index.name} has {index.stat().st_size} bytes, more than any index of tensors")
    try:
        files = json.loads(index.read_bytes())["weight_map"]
        pairs = list(files.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{index.name} is no index of tensors: it must be JSON with a "weight_map" of file names') from error
    for name, file in pairs:
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or file.endswith(INDEX_SUFFIX):
            raise ValueError(f"{index.name}: {name} must be in a file beside the index, not in {file!r}")
    if not pairs:
        raise ValueError(f"{index.name} names no tensors")
    return files


def file_of(folder: pathlib.Path, suffixes: Sequence[str]) -> pathlib.Path:
    """The file of weights in a folder: its index, or the only file of the first of `suffixes` that
    any file has.

    Raises:
      ValueError: There is none, or there are several.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffix in (INDEX_SUFFIX, *suffixes):
        found = [path for path in files if path.name.endswith(suffix)]
        found = [path for path in found if path.name.startswith("model.")] or found
        if len(found) > 1:
            raise ValueError(f"{folder} is a folder of several files of weights: name one of {', '.join(path.name for path in found[:10])}")
        if found:
            return found[0]
    raise ValueError(f"{folder} is a folder without weights; they are read from {', '.join(suffixes)} files or an index, *{INDEX_SUFFIX}")

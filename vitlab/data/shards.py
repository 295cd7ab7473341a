"""Shards of our own: array_record files of encoded images with an index, written by `python -m vitlab.data.prepare`.

The records of a split lie in a fixed pseudo-random order, so that every slice of it ("train[:90%]") holds every class.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from vitlab.config import ConfigError, near_misses
from vitlab.data.example import file_name, image_and_label
from vitlab.data.image_folder import EVAL_FOLDERS
from vitlab.data.paths import data_path, refuse_remote, size_of
from vitlab.data.splits import split_name, split_range

INDEX = "index.json"
_VERSION = 1  # of the format
_CHUNK = 2**20  # bytes read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file; `size` and `sha256` are None while it is not written."""

    file: str  # below the folder
    records: int
    size: int | None = None  # bytes
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder of shards holds, or will hold when all are written."""

    class_names: tuple[str, ...]
    channels: int  # 1 (grey) or 3 (RGB)
    short_side: int | None  # pixels to which the short side was shrunk
    sources: dict[str, str]  # split -> fingerprint of what it was made of
    splits: dict[str, tuple[Shard, ...]]

    def write(self, folder: epath.Path) -> None:
        """Replaces the folder's index at once."""
        temporary = folder / (INDEX + ".tmp")
        temporary.write_text(json.dumps({"version": _VERSION, **dataclasses.asdict(self)}, indent=1) + "\n")
        temporary.replace(folder / INDEX)


def read_index(folder: epath.Path) -> Index:
    """The index of a folder of shards.

    Raises:
      ConfigError: There is none, or it is damaged or of another version.
    """
    if not folder.is_dir():
        raise ConfigError(f"data.data_dir={folder} {'is no folder' if folder.exists() else 'does not exist'}")
    try:
        values = json.loads((folder / INDEX).read_text())
        version = values.pop("version")
        if version != _VERSION:
            raise ConfigError(f"{folder / INDEX} has version {version}, not {_VERSION}; run python -m vitlab.data.prepare anew")
        values["class_names"] = tuple(values["class_names"])
        values["splits"] = {name: tuple(Shard(**shard) for shard in shards) for name, shards in values["splits"].items()}
        return Index(**values)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no {INDEX}; write shards with python -m vitlab.data.prepare SRC {folder}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / INDEX} is damaged; run python -m vitlab.data.prepare SRC {folder} again") from error


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardsSource:
    """One split, of encoded images; reading many at once is faster than one by one."""

    records: ArrayRecordDataSource
    class_names: tuple[str, ...]
    channels: int
    fingerprint: str
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises OSError if the record is damaged."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`; raises OSError if one of them is damaged."""
        try:
            records = self.records.__getitems__(indices)
            return [dict(zip(("image", "label"), image_and_label(record), strict=True)) for record in records]
        except (RuntimeError, ValueError, IndexError) as error:  # the reader's, when a checksum is wrong or the file ends
            raise OSError("damaged record") from error

    def name_of(self, index: int) -> str:
        """Split and path of the file it was made of, "train/ant/0.png"; the position if it cannot be read."""
        try:
            name = file_name(self.records[index])
        except (RuntimeError, ValueError, IndexError):
            name = None
        return f"{split_name(self.split)}/{name}" if name else f"{self.split}/{index}"


def open_shards(data_dir: str | None, split: str) -> ShardsSource:
    """Opens one split of a folder that `python -m vitlab.data.prepare` wrote.

    Only sizes are compared here; `python -m vitlab.data.prepare --verify DST` compares the checksums.

    Args:
      data_dir: The folder, on a local disk.
      split: A split of its index, with an optional slice; "test" also takes "val", "validation" or "valid".

    Raises:
      ConfigError: No index, no such split, an unfinished one, a shard that is missing, empty or of another size, or a folder in a
        bucket, where array_record cannot read.
    """
    if data_dir is None:
        raise ConfigError('data.source="shards" needs data.data_dir, the folder that python -m vitlab.data.prepare wrote')
    refuse_remote(data_dir, "shards")
    folder = data_path(data_dir)
    index = read_index(folder)
    name = _find_split(index, folder, split_name(split))
    shards = index.splits[name]
    for shard in shards:
        check(folder, shard)
    part = split_range(split, sum(shard.records for shard in shards))
    return ShardsSource(
        records=ArrayRecordDataSource(_ranges(folder, shards, part)),
        class_names=index.class_names,
        channels=index.channels,
        fingerprint=_fingerprint(index, name, part),
        split=split,
    )


def check(folder: epath.Path, shard: Shard, *, checksum: bool = False) -> None:
    """Compares a shard with the index.

    Raises:
      ConfigError: It is missing, empty, of another size, or, if `checksum`, of other bytes; names the file and the remedy.
    """
    path, remedy = folder / shard.file, f"run python -m vitlab.data.prepare SRC {folder} again"
    if shard.sha256 is None:
        raise ConfigError(f"shard {path} is not written yet; {remedy}")
    if not path.is_file():
        raise ConfigError(f"shard {path} is missing; {remedy}")
    size = size_of(os.fspath(path))
    if size != shard.size:
        raise ConfigError(f"shard {path} has {size} bytes{' (it is empty)' * (not size)}, not {shard.size} as in {INDEX}; {remedy}")
    if checksum and sha256(path) != shard.sha256:
        raise ConfigError(f"shard {path} has another SHA-256 than in {INDEX}; delete it and {remedy}")


def sha256(path: epath.Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # of a bucket's files only `read` is sure
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _find_split(index: Index, folder: epath.Path, name: str) -> str:
    for candidate in (name, *(EVAL_FOLDERS if name == "test" else ())):
        if candidate in index.splits:
            return candidate
    raise ConfigError(
        f'{folder} has no split "{name}"; {near_misses(name, index.splits)}; slices work too, '
        'data.train_split="train[:90%]" and data.eval_split="train[90%:]"'
    )


def _ranges(folder: epath.Path, shards: Sequence[Shard], part: slice) -> list[str]:
    """The records of `part` as "path[start:stop]", shard by shard."""
    ranges, first = [], 0
    for shard in shards:
        start, stop = max(part.start - first, 0), min(part.stop - first, shard.records)
        if start < stop:
            ranges.append(f"{folder / shard.file}[{start}:{stop}]")
        first += shard.records
    return ranges


def _fingerprint(index: Index, name: str, part: slice) -> str:
    what = (index.class_names, index.channels, [(shard.records, shard.sha256) for shard in index.splits[name]], part.start, part.stop)
    return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()

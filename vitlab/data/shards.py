"""Shards: array_record files of encoded images with an index, made by `vitlab.data.prepare`.

The records of a split lie in the order of `spread_order`, so that every slice ("train[:90%]") has
its share of every class. Version 1 of the index has images and labels; version 2 has other fields
and stores their kinds.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from vitlab.config import ConfigError, near_misses
from vitlab.data.example import file_name
from vitlab.data.field_json import fields_from_json
from vitlab.data.fields import CLASSIFICATION, Kind
from vitlab.data.paths import data_path, is_remote, refuse_remote, refuse_undecodable, size_of
from vitlab.data.records import DAMAGE, read_example, read_examples, read_fields
from vitlab.data.split_folders import EVAL_FOLDERS
from vitlab.data.splits import split_name, split_range

INDEX = "index.json"
TEMPORARY_INDEX = INDEX + ".tmp"  # renamed to the index when it is complete
_VERSION, _VERSION_WITH_FIELDS = 1, 2  # versions of the format
_CHUNK = 2**20  # bytes read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file; `size` and `sha256` are None until it is written."""

    file: str  # relative to the folder
    records: int
    size: int | None = None  # bytes
    sha256: str | None = None  # 64 hexadecimal digits

    def __post_init__(self):
        if not isinstance(self.file, str) or self.file != os.path.basename(self.file) or self.file in ("", ".", "..") or "\0" in self.file:
            raise ValueError(f"file={self.file!r} must be the name of a file in the folder of the index")
        if not _is_count(self.records) or not (self.size is None or _is_count(self.size)):
            raise ValueError(f"records={self.records!r} and size={self.size!r} must be at least 1")
        if not (self.sha256 is None or isinstance(self.sha256, str)):
            raise ValueError(f"sha256={self.sha256!r} must be text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """The contents of a folder of shards, once all are written."""

    class_names: tuple[str, ...]
    channels: int  # 1 (grey), 3 (RGB), or what the image declares
    short_side: int | None  # pixels to which a longer short side was resized; None: images are unchanged
    sources: dict[str, str]  # split -> fingerprint of its source
    splits: dict[str, tuple[Shard, ...]]
    margins: dict[str, int] = dataclasses.field(default_factory=dict)  # split -> classes of at least two images; see `split_range`
    fields: dict[str, dict[str, Any]] | None = None  # see `fields_to_json`; None: an image and its label

    def __post_init__(self):
        if (self.fields is None and len(self.class_names) < 2) or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"class_names={self.class_names!r} must be two names or more")
        if not _is_count(self.channels) or not (self.short_side is None or _is_count(self.short_side)):
            raise ValueError(f"channels={self.channels!r} and short_side={self.short_side!r} must be at least 1")
        if not isinstance(self.sources, dict) or not all(self.splits.values()):
            raise ValueError(f"sources={self.sources!r} must be a fingerprint for each split, and each split must have a shard")
        for split, margin in self.margins.items():
            if not (margin == 0 or _is_count(margin)) or 2 * margin > sum(shard.records for shard in self.splits[split]):
                raise ValueError(f"margins={self.margins!r} must be at most half of the records of each split")
        if self.fields is not None:
            fields_from_json(self.fields)

    def write(self, folder: epath.Path) -> None:
        """Replaces the folder's index at once.

        In a bucket files appear whole, so that no temporary name is needed.
        """
        values = dataclasses.asdict(self)
        version = _VERSION if values["fields"] is None else _VERSION_WITH_FIELDS
        if version == _VERSION:
            del values["fields"]
        text = json.dumps({"version": version, **values}, indent=1) + "\n"
        if is_remote(folder):
            (folder / INDEX).write_text(text)
            return
        with open(folder / TEMPORARY_INDEX, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(folder / TEMPORARY_INDEX, folder / INDEX)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class DamagedIndexError(ConfigError):
    """An index.json that is damaged or incomplete."""


def read_index(folder: epath.Path) -> Index:
    """Reads the index of a folder of shards.

    Raises:
      ConfigError: The index is missing, damaged or of another version.
    """
    if not folder.is_dir():
        raise ConfigError(f"data.data_dir={folder} {'is no folder' if folder.exists() else 'does not exist'}")
    again = f"run python -m vitlab.data.prepare SRC {folder} again"
    try:
        values = json.loads((folder / INDEX).read_bytes())
        version = values.pop("version")
        if version in (_VERSION, _VERSION_WITH_FIELDS):
            if (version == _VERSION_WITH_FIELDS) != ("fields" in values):
                raise ValueError("only version 2 has fields")
            return _index(values)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no {INDEX}; write shards with python -m vitlab.data.prepare SRC {folder}") from error
    except OSError as error:
        raise ConfigError(f"{folder / INDEX} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedIndexError(f"{folder / INDEX} is damaged; {again}") from error
    raise ConfigError(
        f"{folder / INDEX} has {version=}, not {_VERSION} or {_VERSION_WITH_FIELDS}; write the shards anew into another folder"
    )


def _index(values: dict[str, Any]) -> Index:
    splits = {name: tuple(Shard(**shard) for shard in shards) for name, shards in values.pop("splits").items()}
    return Index(class_names=tuple(values.pop("class_names")), splits=splits, **values)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardsSource:
    """One split of encoded images; reading many at once is faster than one by one."""

    records: ArrayRecordDataSource
    class_names: tuple[str, ...]
    channels: int
    fingerprint: str
    split: str
    kinds: Mapping[str, Kind] | None = None  # kinds of the fields of version 2; None: an image and its label

    @property
    def fields(self) -> Mapping[str, Kind]:
        """Kinds of the fields, by name."""
        return CLASSIFICATION if self.kinds is None else self.kinds

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example; raises OSError if its record is damaged or its label has no class."""
        if self.kinds is not None:
            return self.__getitems__([index])[0]
        return read_example(self.records, index, len(self.class_names))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`; raises OSError as `__getitem__` does."""
        if self.kinds is not None:
            return read_fields(self.records, indices, self.kinds)
        return read_examples(self.records, indices, len(self.class_names))

    def name_of(self, index: int) -> str:
        """Split and path of the original file, "train/ant/0.png"; the index if it is unknown."""
        try:
            name = file_name(self.records[index])
        except DAMAGE:
            name = None
        return f"{split_name(self.split)}/{name}" if name else f"{self.split}/{index}"


def open_shards(data_dir: str | None, split: str) -> ShardsSource:
    """Opens one split of a folder that `python -m vitlab.data.prepare` wrote.

    Only sizes are compared here; `python -m vitlab.data.prepare --verify DST` compares the
    checksums.

    Args:
      data_dir: The folder, on a local disk.
      split: A split in the index, with an optional slice; "test" also accepts "val", "validation"
        or "valid".

    Raises:
      ConfigError: There is no index or split, the split is unfinished, a shard is missing, empty or
        of another size, or the folder is in a bucket, where array_record cannot read.
    """
    if data_dir is None:
        raise ConfigError('data.source="shards" needs data.data_dir, the folder that python -m vitlab.data.prepare wrote')
    refuse_remote(data_dir, "shards")
    refuse_undecodable(data_dir, "shards")
    folder = data_path(data_dir)
    index = read_index(folder)
    name = _find_split(index, folder, split_name(split))
    shards = index.splits[name]
    for shard in shards:
        check(folder, shard)
    part = split_range(split, sum(shard.records for shard in shards), margin=index.margins.get(name, 0))
    return ShardsSource(
        records=ArrayRecordDataSource(_ranges(folder, shards, part)),
        class_names=index.class_names,
        channels=index.channels,
        fingerprint=_fingerprint(index, name, part),
        split=split,
        kinds=None if index.fields is None else fields_from_json(index.fields),
    )


def check(folder: epath.Path, shard: Shard, *, checksum: bool = False) -> None:
    """Compares a shard with the index.

    Raises:
      ConfigError: The shard is missing, empty, of another size or, with `checksum`, of other bytes;
        the message names the file and the remedy.
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
    """SHA-256 checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # files in buckets support little but `read`
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
    """The records of `part` as "path[start:stop]", one entry per shard."""
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

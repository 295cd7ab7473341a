"""Images with fields in files of equal stem: index maps, depth, a second view, a target.

A stem is a file's path without the parts that its pattern fixes. `data.files` has a pattern for
each field, below `data.data_dir`: "image=images/{split}/{stem}.jpg". A stem may have folders
("aachen/aachen_000000"). A pattern may end in ".*" for any image format. An entry
"list=lists/{split}.txt" names the stems of a split.
"""

import collections
import functools
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitlab.config import ConfigError
from vitlab.data.channels import channels_of
from vitlab.data.classes import CLASS_LIST, read_class_list
from vitlab.data.decode import header_of
from vitlab.data.field_files import Entry, kind_of, parse_files
from vitlab.data.fields import Image, IndexMap, Kind, declared_channels, paired
from vitlab.data.formats import extensions
from vitlab.data.headers import DecodeError
from vitlab.data.paths import Fence, data_path, files_below, join, read_bytes, refuse_remote
from vitlab.data.split_folders import EVAL_FOLDERS
from vitlab.data.splits import split_name, stratified

logger = logging.getLogger(__name__)

_SHOWN = 5  # number of stems that a message names
_EXAMPLE = 'data.files=("image=images/{split}/{stem}.jpg","segmentation=annotations/{split}/{stem}.png")'


class PairsSource:
    """The files of one split; only their names are held in memory."""

    def __init__(self, root: epath.Path, files: Mapping[str, Sequence[str]], sizes: np.ndarray, fields: Mapping[str, Kind]):
        """Takes the files of each field, all in one order.

        Args:
          root: The root folder.
          files: Paths relative to `root`, by field.
          sizes: int64 [fields, n], in bytes.
          fields: Kinds of the fields.
        """
        self.root, self._files, self.fields = root, {name: tuple(paths) for name, paths in files.items()}, paired(fields)
        self._folder = os.fspath(root)
        digest = hashlib.blake2b(repr((self._files, fields)).encode("utf-8", "surrogateescape"), digest_size=8)
        digest.update(sizes.tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the index map; () without one."""
        return next((kind.class_names for kind in self.fields.values() if isinstance(kind, IndexMap)), ())

    @functools.cached_property
    def channels(self) -> int:
        """Channels that `data.files` declares, else by the images' headers: 1 if all are grey."""
        return declared_channels(self.fields) or channels_of(self._read_head, np.zeros(len(self), np.int64))

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the images, relative to the root."""
        return self._files["image"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: read_bytes(join(self._folder, paths[index])) for name, paths in self._files.items()}

    def _read_head(self, index: int, size: int | None) -> bytes:
        return read_bytes(join(self._folder, self.files[index]), size)

    def name_of(self, index: int) -> str:
        """Path of the image's file."""
        return join(self._folder, self.files[index])


def open_pairs(
    data_dir: str | None, split: str, files: Sequence[str], *, names: Sequence[str] | None = None, follow_outside: bool = False
) -> PairsSource:
    """Opens one split.

    Images without a file of every other field are left out, and counted in the log. A slice takes a
    fixed pseudo-random part.

    Args:
      data_dir: The root, on a local disk.
      split: Name that {split} in the patterns stands for, with an optional slice; "test" also
        accepts a folder named "val" and the like.
      files: Entries as in `data.files`.
      names: Fields to read; None for all that have a pattern.
      follow_outside: Whether symbolic links may lead out of the root.

    Raises:
      ConfigError: There is no root, a pattern is malformed or matches nothing, an index map has no
        classes, or a symbolic link leads out of the root.
    """
    if data_dir is None:
        raise ConfigError('data.source="pairs" needs data.data_dir, the folder below which the patterns of data.files begin')
    refuse_remote(data_dir, "pairs")
    root = data_path(data_dir)
    if not root.is_dir():
        raise ConfigError(f"data.data_dir={data_dir} {'is no folder' if root.exists() else 'does not exist'}")
    entries = parse_files(files)
    if "image" not in entries:
        raise ConfigError(f'data.source="pairs" needs a pattern for the images, and one for each other field: {_EXAMPLE}')
    wanted = {name: entries[name] for name in entries if name != "list" and (names is None or name in names or name == "image")}
    name = split_name(split)
    fence = Fence(root, follow_outside=follow_outside)
    by_list = "list" in entries and "{split}" in entries["list"].place
    for entry in wanted.values():
        if name != "train" and "{split}" not in entry.place and not by_list:
            raise ConfigError(
                f'{entry.text} has no {{split}}, so the only split is "train"; set data.train_split="train[:90%]" and '
                'data.eval_split="train[90%:]"'
            )
    found = {entry.field: _find(root, entry, name, fence) for entry in wanted.values()}
    stems = _listed(root, entries["list"], name, fence) if "list" in entries else sorted(found["image"])
    stems = _complete(stems, found, split)
    order = stratified(split, stems, np.zeros(len(stems), np.int32)) if split != name else np.arange(len(stems))
    stems = [stems[i] for i in order]
    paths = {field: [places[stem][0] for stem in stems] for field, places in found.items()}
    sizes = np.array([[places[stem][1] for stem in stems] for places in found.values()], np.int64)
    class_names = read_class_list(root) or ()
    fields = {entry.field: _sized(kind_of(entry, class_names), root, paths["image"][0], paths[entry.field][0]) for entry in wanted.values()}
    for kind in fields.values():
        if isinstance(kind, IndexMap) and not kind.class_names:
            raise ConfigError(f"an index map needs the names of its classes: classes=a,b,c after its pattern, or {root / CLASS_LIST}")
    return PairsSource(root, paths, sizes, fields)


def _find(root: epath.Path, entry: Entry, split: str, fence: Fence) -> dict[str, tuple[str, int]]:
    """The files that match a pattern: stem -> path relative to the root, and size in bytes."""
    if entry.place.count("{stem}") != 1:
        raise ConfigError(f"{entry.text} must have {{stem}} once: {_EXAMPLE}")
    tried = [entry.place.replace("{split}", name) for name in dict.fromkeys((split, *(EVAL_FOLDERS if split == "test" else ())))]
    for pattern in tried:
        before, after = pattern.split("{stem}")
        folder, prefix = os.path.split(before)
        if (root / folder).is_dir():
            fence.check(os.fspath(root / folder))
            return _matches(os.fspath(root / folder), folder, prefix, after, fence)
    raise ConfigError(f"{entry.text}: {root} has no folder {os.path.dirname(tried[0].split('{stem}')[0]) or '.'}")


def _matches(path: str, folder: str, prefix: str, after: str, fence: Fence) -> dict[str, tuple[str, int]]:
    out = {}
    for name, size in files_below(path, fence):
        stem, suffix = os.path.splitext(name) if after.endswith(".*") else (name, "")
        ending = after.removesuffix(".*")
        if after.endswith(".*") and suffix.lower() not in extensions():
            continue
        if stem.startswith(prefix) and stem.endswith(ending) and len(stem) > len(prefix) + len(ending):
            out[stem[len(prefix) : len(stem) - len(ending)]] = (os.path.join(folder, name), size)
    return out


def _listed(root: epath.Path, entry: Entry, split: str, fence: Fence) -> list[str]:
    """The stems in a list, the first word of each line."""
    path = fence.path_of(entry.place.replace("{split}", split))
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{entry.text}: {path} cannot be read as a list of stems: {error}") from error
    stems = [line.split()[0] for line in lines if line.strip()]
    if twice := [stem for stem, count in collections.Counter(stems).items() if count > 1]:
        raise ConfigError(f'{path} names "{twice[0]}" more than once')
    return stems


def _complete(stems: Sequence[str], found: Mapping[str, Mapping[str, Any]], split: str) -> list[str]:
    """The stems that have a file of every field; the other stems are logged."""
    kept = list(stems)
    for field, places in found.items():
        missing = [stem for stem in kept if stem not in places]
        kept = [stem for stem in kept if stem in places]
        if not kept:
            what = f"; no stem of the images has a file of {field}" if stems else ""
            raise ConfigError(f'data.files matches no image of split "{split}"{what}')
        if missing:
            names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            logger.warning("%d of %d images of %s have no %s and are left out: %s", len(missing), len(stems), split, field, names)
    return kept


def _sized(kind: Kind, root: epath.Path, image: str, other: str) -> Kind:
    """The kind with its `scale`, if the field may have more pixels than the image.

    The scale is read from the headers of the first pair; other kinds stay unchanged.
    """
    if not isinstance(kind, Image) or image == other:
        return kind
    try:
        small, large = (header_of(read_bytes(join(os.fspath(root), path))) for path in (image, other))
    except (DecodeError, OSError):
        return kind
    scale = max(1, large.height // max(1, small.height))
    return Image(scale=scale, mirror=kind.mirror)

"""Images in tar files as WebDataset writes them, with random access.

Members of one key ("0001.jpg", "0001.cls") are an example. `data.files` has "tars=PATTERN"
("{split}-*.tar"), below `data.data_dir`, and the extension of each field: "image=jpg",
"segmentation=seg.png", "label=cls" (an integer as text; classes.txt names the classes). Several
extensions are tried in order: "image=jpg|png".
"""

import dataclasses
import functools
import glob
import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitlab.config import ConfigError
from vitlab.data.channels import channels_of
from vitlab.data.classes import CLASS_LIST, read_class_list
from vitlab.data.field_files import Entry, kind_of, parse_files
from vitlab.data.fields import IndexMap, Kind, Label, declared_channels, paired
from vitlab.data.paths import Fence, data_path, refuse_remote
from vitlab.data.splits import split_name, stratified

_EXAMPLE = 'data.files=("tars={split}-*.tar","image=jpg","label=cls")'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TarSource:
    """The examples of some tar files; the members' offsets are held in memory."""

    paths: tuple[str, ...]  # paths of the tar files
    keys: tuple[str, ...]  # keys of the examples
    places: Mapping[str, np.ndarray]  # field -> int64 [n, 3]: index of the tar file, first byte, number of bytes
    fields: Mapping[str, Kind]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the names, keys, places and kinds."""
        names = [os.path.basename(path) for path in self.paths]
        digest = hashlib.blake2b(repr((names, self.keys, dict(self.fields))).encode("utf-8", "surrogateescape"), digest_size=8)
        for places in self.places.values():
            digest.update(places.tobytes())
        return digest.hexdigest()

    @property
    def files(self) -> tuple[str, ...]:
        """One name for each example, for `vitlab.data.prepare`."""
        return self.keys

    @functools.cached_property
    def channels(self) -> int:
        """Channels that `data.files` declares, else by the images' headers: 1 if all are grey."""
        return declared_channels(self.fields) or channels_of(
            lambda index, size: self._read("image", index, size), np.zeros(len(self), np.int64)
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The members as bytes, a label as a number.

        Raises OSError if a member cannot be read, or the label has no class.
        """
        values: dict[str, Any] = {name: self._read(name, index) for name in self.fields}
        if "label" in values:
            values["label"] = self._label(values["label"])
        return values

    def _label(self, text: bytes) -> int:
        if not text.strip().isdigit() or not 0 <= int(text) < len(self.class_names):
            raise OSError(f"label {text[:20]!r} is not in 0..{len(self.class_names) - 1}")
        return int(text)

    def _read(self, name: str, index: int, size: int | None = None) -> bytes:
        number, first, count = self.places[name][index].tolist()
        with open(self.paths[number], "rb") as file:
            file.seek(first)
            return file.read(count if size is None else min(count, size))

    def name_of(self, index: int) -> str:
        """The tar file and the key."""
        return f"{self.paths[int(self.places['image'][index, 0])]}/{self.keys[index]}"


def open_tars(
    data_dir: str | None, split: str, files: Sequence[str], *, names: Sequence[str] | None = None, follow_outside: bool = False
) -> TarSource:
    """Opens one split, and reads the headers of all members.

    Args:
      data_dir: The root, on a local disk.
      split: Name that {split} stands for, with an optional slice, which takes a fixed pseudo-random
        part.
      files: Entries as in `data.files`.
      names: Fields to read; None for all that have an extension.
      follow_outside: Whether symbolic links may lead out of the root.

    Raises:
      ConfigError: There is no root, no tar file or no example with all fields, or a tar file is
        damaged or compressed.
    """
    if data_dir is None:
        raise ConfigError('data.source="tars" needs data.data_dir, the folder of the tar files')
    refuse_remote(data_dir, "tar files")
    root, entries, name = data_path(data_dir), parse_files(files), split_name(split)
    if not {"tars", "image"} <= entries.keys():
        raise ConfigError(f'data.source="tars" needs a pattern of the tar files, and the extension of each field: {_EXAMPLE}')
    fence = Fence(root, follow_outside=follow_outside)
    pattern = entries["tars"].place.replace("{split}", glob.escape(name))
    paths = [fence.path_of(path) for path in sorted(glob.glob(pattern, root_dir=os.fspath(root)))]
    if not paths:
        raise ConfigError(f"{entries['tars'].text} matches no file in {root}")
    wanted = [entry for field, entry in entries.items() if field != "tars" and (names is None or field in names or field == "image")]
    found = [found for number, path in enumerate(paths) for found in _examples(number, path, wanted)]
    if not found:
        raise ConfigError(f"{paths[0]} has no member of every field: {', '.join(entry.text for entry in wanted)}")
    keys = [key for key, _ in found]
    order = stratified(split, keys, np.zeros(len(keys), np.int32)) if split != name else np.arange(len(keys))
    classes = read_class_list(root) or ()
    fields = paired({entry.field: Label(class_names=classes) if entry.field == "label" else kind_of(entry, classes) for entry in wanted})
    maps = [kind.class_names for kind in fields.values() if isinstance(kind, IndexMap)]
    if any(not own for own in maps) or ("label" in fields and not classes):
        raise ConfigError(f"labels and index maps need the names of their classes: {root / CLASS_LIST}, one name per line")
    places = np.array([places for _, places in found], np.int64)[order]
    return TarSource(
        paths=tuple(paths),
        keys=tuple(keys[i] for i in order),
        places={entry.field: places[:, column] for column, entry in enumerate(wanted)},
        fields=fields,
        class_names=maps[0] if maps else classes,
    )


def _examples(number: int, path: str, wanted: Sequence[Entry]) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """Key and members' places of each example that has all fields, in the tar file's order."""
    members: dict[str, dict[str, tuple[int, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, base = os.path.split(member.name)
                key, dot, extension = base.partition(".")
                if member.isreg() and dot and key:
                    members.setdefault(os.path.join(folder, key), {})[extension.lower()] = (number, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is damaged, or compressed and so without random access: {error}") from error
    out = []
    for key, own in members.items():
        places = [next((own[part] for part in entry.place.lower().split("|") if part in own), None) for entry in wanted]
        if None not in places:
            out.append((key, [place for place in places if place is not None]))
    return out

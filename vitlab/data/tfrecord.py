"""Images in TFRecord files of tf.train.Example, ImageNet's usual layout, without TensorFlow.

They serve as a source for conversion to shards. A record is its length (uint64, little endian), a
masked CRC-32C of the length, the bytes, and a masked CRC-32C of the bytes.
"""

import collections
import dataclasses
import hashlib
import mmap
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vitlab.config import ConfigError, near_misses
from vitlab.data.channels import channels_of
from vitlab.data.classes import CLASS_LIST, read_class_list
from vitlab.data.crc32c import masked_crc32c
from vitlab.data.example import image_and_label, integer
from vitlab.data.paths import Fence, data_path, refuse_remote

# Examples: "train-00000-of-01024", "imagenet2012-train.tfrecord-00000-of-01024",
# "train_07.tfrecord", "train.tfrecords", "train-07.tfrec".
_FILE = re.compile(
    r"(?P<dataset>.+?-)??(?P<split>[A-Za-z]\w*?)(\.tfrec(ords?)?)?([-_](?P<number>\d+)(-of-(?P<count>\d+))?)?(\.tfrec(ords?)?)?", re.ASCII
)
_EXTENSION = re.compile(r"\.tfrec(ords?)?(?![A-Za-z])")
_HEADER = struct.Struct("<QI")  # length of the data, and the length's checksum
_FOOTER = struct.Struct("<I")  # checksum of the data
_GZIP = b"\x1f\x8b"
_LABELS = 2**31  # labels must be below it, as int32
_PROBES = 2**12  # largest number of records whose headers are read; each record is read whole
_REMEDY = "copy the file anew"
_OTHER_BYTES = f"its bytes have another checksum; {_REMEDY}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the records' features, and the first label."""

    image_key: str = "image/encoded"
    label_key: str = "image/class/label"
    first_label: int = 0  # label of the first class in classes.txt; 1 in copies of ImageNet that use 0 for the background

    def __post_init__(self):
        if not 0 <= self.first_label < _LABELS:
            raise ConfigError(f"--first_label={self.first_label} must be in [0, 2**31)")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Positions of the records of a split in its files, one entry for each record."""

    paths: tuple[pathlib.Path, ...]
    file: np.ndarray  # int32 [n], index into `paths`
    offset: np.ndarray  # int64 [n], bytes, of the record's header
    length: np.ndarray  # int64 [n], bytes of data
    checksum: np.ndarray  # uint32 [n], masked checksum of the data, as stored
    label: np.ndarray  # int64 [n], as stored


class TfrecordSource:
    """The images of one split; each access reads a record and compares its checksum."""

    def __init__(self, records: Records, labels: np.ndarray, class_names: tuple[str, ...], layout: Layout):
        """Takes `labels` int32 [n], indices into `class_names`."""
        self.records, self.labels, self.class_names, self.layout = records, labels, class_names, layout
        names = [path.name for path in records.paths]
        self.files = tuple(f"{names[i]}@{offset}" for i, offset in zip(records.file.tolist(), records.offset.tolist(), strict=True))
        digest = hashlib.blake2b(repr((class_names, names, layout)).encode("utf-8", "surrogateescape"), digest_size=8)
        for array in (records.file, records.offset, records.length, records.checksum, labels):
            digest.update(array.tobytes())
        self.fingerprint = digest.hexdigest()
        self.channels = channels_of(lambda index, size: self[index]["image"], labels, probes=_PROBES)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example; raises ConfigError, with file and offset, if the record is damaged."""
        records = self.records
        path, offset, length = records.paths[records.file[index]], int(records.offset[index]), int(records.length[index])
        with path.open("rb") as file:
            file.seek(offset + _HEADER.size)
            data = file.read(length)
        if len(data) != length or masked_crc32c(data) != records.checksum[index]:
            raise _damaged(path, offset, _OTHER_BYTES)
        try:
            image, _ = image_and_label(data, self.layout.image_key.encode(), self.layout.label_key.encode())
        except ValueError as error:
            raise _damaged(path, offset, str(error)) from error
        return {"image": image, "label": int(self.labels[index])}

    def name_of(self, index: int) -> str:
        """Path of the file and offset of the record: "data/train-00000-of-00002@4711"."""
        path = self.records.paths[self.records.file[index]]
        return f"{path}@{self.records.offset[index]}"


def open_tfrecords(src: str, splits: Sequence[str], layout: Layout, *, follow_outside: bool = False) -> dict[str, TfrecordSource]:
    """Finds all records of the splits in one pass that reads a few bytes per record.

    The classes are the names in classes.txt in the folder, the first of which has the label
    `layout.first_label`. Without that file they are the sorted labels of all splits, named by their
    numbers.

    Args:
      src: A folder of files such as "train-00000-of-01024" or
        "imagenet2012-train.tfrecord-00000-of-01024", or of a folder per split.
      splits: Names of splits; none for all.
      layout: Layout of the records.
      follow_outside: Whether symbolic links may lead out of the folder.

    Raises:
      ConfigError: A folder, a split or one of its files is missing, a header is damaged, a record
        has no label or one that classes.txt lacks, or there are fewer than two classes. The message
        names the file and the offset of the record in bytes.
    """
    refuse_remote(src, "TFRecord files")
    root = pathlib.Path(data_path(src))
    found = _find_files(root, Fence(root, follow_outside=follow_outside))
    for split in splits:
        if split not in found:
            raise ConfigError(f'{root} has no TFRecord files of a split "{split}"; {near_misses(split, found)}')
    records = {split: _scan(found[split], layout.label_key.encode()) for split in splits or sorted(found)}
    listed = read_class_list(data_path(root))
    values = sorted(set().union(*(np.unique(r.label).tolist() for r in records.values())))
    class_names = listed or tuple(map(str, values))
    if len(class_names) < 2:
        raise ConfigError(f"{root} has {len(class_names)} class; at least 2 are needed")
    sources = {}
    for split, part in records.items():
        labels = part.label - layout.first_label if listed else np.searchsorted(values, part.label)
        _check_labels(part, labels, len(class_names), layout)
        sources[split] = TfrecordSource(part, labels.astype(np.int32), class_names, layout)
    return sources


def _check_labels(records: Records, labels: np.ndarray, num_classes: int, layout: Layout) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes) | (records.label < 0))
    if len(wrong):
        i = wrong[0]
        why = f"label {records.label[i]} is none of a class"
        if records.label[i] >= 0:
            last = layout.first_label + num_classes - 1
            why = f"label {records.label[i]} is not in {layout.first_label}..{last}, as {CLASS_LIST} is long; see --first_label"
        raise _damaged(records.paths[records.file[i]], int(records.offset[i]), why)


def _find_files(root: pathlib.Path, fence: Fence) -> dict[str, list[pathlib.Path]]:
    """The files of each split, in order."""
    if not root.is_dir():
        raise ConfigError(f"{root} {'is no folder' if root.exists() else 'does not exist'}")
    found, series = collections.defaultdict(list), collections.defaultdict(set)
    folders = [root, *(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))]
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        numbered = match is not None and match["count"] is not None
        if path.name.startswith(".") or not (numbered or _EXTENSION.search(path.name)) or not path.is_file():
            continue
        fence.check(os.fspath(path))
        if match is None and path.parent == root:
            raise ConfigError(f"the split of {path} cannot be told from its name; put the files of each split into a folder of its name")
        found[match["split"] if match and path.parent == root else path.parent.name].append(path)
        if match and match["count"]:
            series[path.parent, match["dataset"], match["split"], match["count"]].add(int(match["number"]))
    for (folder, dataset, split, count), numbers in series.items():
        missing = next((number for number in range(int(count)) if number not in numbers), None)
        if missing is not None:
            raise ConfigError(
                f"{folder} has {len(numbers)} of the {int(count)} files of {dataset or ''}{split}; number {missing} is missing"
            )
    if not found:
        raise ConfigError(f"{root} holds no TFRecord file, such as train-00000-of-01024 or train.tfrecord")
    return dict(found)


def _scan(paths: Sequence[pathlib.Path], label_key: bytes) -> Records:
    columns: list[list[int]] = [[], [], [], [], []]
    for number, path in enumerate(paths):
        for record in _records_of(path, label_key):
            for column, value in zip(columns, (number, *record), strict=True):
                column.append(value)
    kinds = (np.int32, np.int64, np.int64, np.uint32, np.int64)
    file, offset, length, checksum, label = (np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
    return Records(paths=tuple(paths), file=file, offset=offset, length=length, checksum=checksum, label=label)


def _records_of(path: pathlib.Path, label_key: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Offset, length, checksum and label of each record of a file."""
    size = path.stat().st_size
    if not size:
        raise ConfigError(f"{path} is empty; {_REMEDY}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:2] == _GZIP:
            raise ConfigError(f"{path} is compressed; unpack it with gunzip")
        offset = 0
        while offset < size:
            start = offset + _HEADER.size
            if start > size:
                raise _damaged(path, offset, f"the file ends within its header; {_REMEDY}")
            length, checksum = _HEADER.unpack_from(data, offset)
            if masked_crc32c(data[offset : offset + 8]) != checksum:
                raise _damaged(path, offset, f"its length has another checksum: the file is damaged, or no TFRecord file; {_REMEDY}")
            stop = start + length
            if stop + _FOOTER.size > size:
                raise _damaged(path, offset, f"the file ends within its {length} bytes; {_REMEDY}")
            (checksum,) = _FOOTER.unpack_from(data, stop)
            try:
                label = integer(data, label_key, start, stop)
            except ValueError as error:
                damaged = masked_crc32c(data[start:stop]) != checksum
                raise _damaged(path, offset, _OTHER_BYTES if damaged else str(error)) from error
            yield offset, length, checksum, label
            offset = stop + _FOOTER.size


def _damaged(path: pathlib.Path, offset: int, why: str) -> ConfigError:
    return ConfigError(f"{path}, record at byte {offset}: {why}")

"""Writes the missing shards of an index.

Each shard appears whole: a process killed at any moment leaves no partial shard.
"""

import concurrent.futures
import dataclasses
import functools
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image

from vitlab.config import ConfigError
from vitlab.cores import usable_cores
from vitlab.data.coco import CocoSource
from vitlab.data.decode import DecodeError, decode
from vitlab.data.example import serialize, serialize_bytes
from vitlab.data.field_json import to_bytes
from vitlab.data.fields import fields_of
from vitlab.data.image_folder import ImageFolderSource
from vitlab.data.pairs import PairsSource
from vitlab.data.paths import is_remote
from vitlab.data.shards import Index, Shard, check, sha256
from vitlab.data.splits import spread_order
from vitlab.data.table import TableSource
from vitlab.data.tars import TarSource
from vitlab.data.tfrecord import TfrecordSource

Images = (
    ImageFolderSource | TfrecordSource | PairsSource | CocoSource | TableSource | TarSource
)  # sources that can be converted: `files` names their images
logger = logging.getLogger(__name__)

_JPEG_QUALITY = 95
_WRITER = "group_size:1,uncompressed"  # each record can be read alone; images are compressed already
_AT_ONCE = 256  # records in memory
_SECONDS = 10  # between two lines of progress


class Progress:
    """Prints the progress every ten seconds."""

    def __init__(self, total: int):
        """Counts up to `total` images."""
        self.total, self.done, self.kept, self.begin = total, 0, 0, time.monotonic()
        self._next = self.begin + _SECONDS

    def add(self, kept: int) -> None:
        """Counts `kept` images of finished shards."""
        self.done, self.kept = self.done + kept, self.kept + kept

    def step(self) -> None:
        """Counts one image."""
        self.done += 1
        if time.monotonic() >= self._next:
            self._next += _SECONDS
            self._print()

    def end(self) -> None:
        """Prints the last line."""
        self._print()

    def _print(self) -> None:
        speed = (self.done - self.kept) / max(time.monotonic() - self.begin, 1e-9)
        kept = f", {self.kept:,} of them there already" if self.kept else ""
        print(f"{self.done:,} of {self.total:,} images{kept}  {speed:.0f} images/s", flush=True)


def write_shards(folder: epath.Path, index: Index, sources: dict[str, Images], num_threads: int) -> Index:
    """Writes the shards that the index lacks, and the index after each; prints the progress.

    Args:
      folder: Folder of the shards, in a bucket or locked by the caller; `index` is stored in it.
      index: The index, with finished and unfinished shards.
      sources: The images of each split.
      num_threads: Threads that read and resize; 0 takes one per core.

    Returns:
      The index with all shards finished.

    Raises:
      ConfigError: An image cannot be read, or a shard cannot be written.
    """
    progress = Progress(sum(map(len, sources.values())))
    with concurrent.futures.ThreadPoolExecutor(num_threads or usable_cores()) as pool:
        for split, source in sources.items():
            order, first = order_of(source), 0
            for number, shard in enumerate(index.splits[split]):
                indices = order[first : first + shard.records].tolist()
                first += shard.records
                if _is_finished(folder, shard):
                    progress.add(shard.records)
                    continue
                records = _records(source, indices, index, pool)
                index = _replaced(index, split, number, _write_shard(folder, shard, records, progress))
                index.write(folder)
    progress.end()
    return index


def _replaced(index: Index, split: str, number: int, shard: Shard) -> Index:
    shards = index.splits[split]
    return dataclasses.replace(index, splits=index.splits | {split: (*shards[:number], shard, *shards[number + 1 :])})


def _is_finished(dst: epath.Path, shard: Shard) -> bool:
    try:
        check(dst, shard)
    except ConfigError:
        return False
    return True


def order_of(source: Images) -> np.ndarray:
    """Order of the records, equal on every machine; each stretch has its share of each class."""
    return spread_order(source.files, labels_to_spread(source))


def labels_to_spread(source: Images) -> np.ndarray:
    """Labels, int [n], that `order_of` spreads evenly; all 0 for images without one."""
    labels = getattr(source, "labels", None)
    return np.zeros(len(source), np.int32) if labels is None else labels


def _records(source: Images, indices: Sequence[int], index: Index, pool: concurrent.futures.Executor) -> Iterator[bytes]:
    make = functools.partial(_record, source, index.short_side) if index.fields is None else functools.partial(_record_of_fields, source)
    for start in range(0, len(indices), _AT_ONCE):
        yield from pool.map(make, indices[start : start + _AT_ONCE])


def _record(source: Images, short_side: int | None, index: int) -> bytes:
    try:
        example = source[index]
    except OSError as error:
        raise ConfigError(f"{source.name_of(index)} cannot be read: {error.strerror}") from error
    data = example["image"] if short_side is None else _shrunk(example["image"], short_side, source, index)
    return serialize(data, example["label"], source.files[index])


def _record_of_fields(source: Images, index: int) -> bytes:
    """The record of an example with other fields, which are only checked when decoded."""
    try:
        example = source[index]
    except OSError as error:
        raise ConfigError(f"{source.name_of(index)} cannot be read: {error.strerror or error}") from error
    return serialize_bytes({name: to_bytes(kind, example[name]) for name, kind in fields_of(source).items()}, source.files[index])


def _shrunk(data: bytes, short_side: int, source: Images, index: int) -> bytes:
    try:
        pixels = decode(data, source.channels)
    except DecodeError as error:
        logger.warning("%s cannot be decoded (%s); it is kept as it is", source.name_of(index), error)
        return data
    height, width = pixels.shape[:2]
    if min(height, width) <= short_side:
        return data
    scale = short_side / min(height, width)
    image = Image.fromarray(pixels if source.channels == 3 else pixels[..., 0])
    buffer = io.BytesIO()
    resized = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    resized.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _write_shard(dst: epath.Path, shard: Shard, records: Iterator[bytes], progress: Progress) -> Shard:
    """Writes to a temporary file, which is renamed to the shard when it is complete on disk.

    A shard for a bucket is written locally first.
    """
    if is_remote(dst):
        with tempfile.TemporaryDirectory() as here:
            written = _write_shard(epath.Path(here), shard, records, progress)
            (epath.Path(here) / shard.file).copy(dst / shard.file, overwrite=True)
        return written
    temporary = dst / temporary_name(shard.file)
    try:
        _write_records(temporary, records, progress)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    written = dataclasses.replace(shard, size=temporary.stat().length, sha256=sha256(temporary))
    temporary.replace(dst / shard.file)
    return written


def _write_records(path: epath.Path, records: Iterator[bytes], progress: Progress) -> None:
    """Writes an array_record file.

    Raises:
      OSError: The file cannot be written; array_record's RuntimeError is converted with its text.
    """
    writer = ArrayRecordWriter(os.fspath(path), _WRITER)
    for record in records:
        _refuse_unwritable(lambda record=record: writer.write(record))
        progress.step()
    _refuse_unwritable(writer.close)


def _refuse_unwritable(call: Callable[[], None]) -> None:
    try:
        call()
    except RuntimeError as error:
        raise OSError(str(error)) from error


def temporary_name(file: str) -> str:
    """Temporary name of a shard's file while it is written."""
    return file + ".tmp"

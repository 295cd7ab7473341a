"""Writes array_record shards from an image folder: python -m vitlab.data.prepare SRC DST [--short_side=N] [--split=train,val].

With --tfrecord, SRC is a folder of TFRecord files, ImageNet's usual layout; they are read without TensorFlow.

The same command again goes on where it was stopped; what is finished is kept. Train on them with data.source="shards" and
data.data_dir=DST. Checking the checksums: python -m vitlab.data.prepare --verify DST.
"""

import concurrent.futures
import dataclasses
import functools
import io
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image

from vitlab import cli
from vitlab.config import ConfigError
from vitlab.data.decode import DecodeError, decode
from vitlab.data.example import serialize
from vitlab.data.image_csv import open_images
from vitlab.data.image_folder import EVAL_FOLDERS, ImageFolderSource
from vitlab.data.paths import data_path, is_remote
from vitlab.data.shards import INDEX, Index, Shard, check, read_index, sha256
from vitlab.data.tfrecord import Layout, TfrecordSource, open_tfrecords

Images = ImageFolderSource | TfrecordSource  # what can be converted: `files` name its images
logger = logging.getLogger(__name__)

_JPEG_QUALITY = 95
_WRITER = "group_size:1,uncompressed"  # any record by itself; images are compressed already
_AT_ONCE = 256  # records in memory
_SECONDS = 10  # between two lines of progress


def prepare(
    src: str,
    dst: str | os.PathLike[str],
    *,
    splits: Sequence[str] = (),
    shard_size: int = 8192,
    short_side: int | None = None,
    num_threads: int = 0,
    tfrecord: Layout | None = None,
) -> Index:
    """Writes, or goes on writing, the shards of an image folder or of TFRecord files.

    Args:
      src: What `open_images` opens: a folder or a CSV; or what `open_tfrecords` opens.
      dst: Made if need be; it may be in a bucket, from which the shards must be copied, or mounted, to be read.
      splits: Names; none: "train" and, if there is a folder of that name, "test", "val", "validation" or "valid"; of TFRecord files all.
      shard_size: Images per shard.
      short_side: Pixels to which a longer short side is shrunk (bicubic, antialiased), as JPEG of quality 95 without metadata;
        other images, and those that cannot be decoded, are kept byte for byte. None: all are.
      num_threads: That read and resize; 0: one per core.
      tfrecord: Of the records, if `src` holds TFRecord files.

    Raises:
      ConfigError: SRC holds no images or a damaged record, DST holds other shards, or a number is out of range. Shards that are
        finished remain, of an unfinished one nothing does.
    """
    if shard_size < 1 or (short_side is not None and short_side < 1):
        raise ConfigError(f"--shard_size={shard_size} and --short_side={short_side} must be at least 1")
    sources: dict[str, Images] = {}
    if tfrecord:
        sources |= open_tfrecords(src, splits, tfrecord)
    else:
        sources |= {split: open_images(src, split) for split in splits or _splits(data_path(src))}
    folder = data_path(dst)
    index = _begin(folder, _plan(sources, shard_size, short_side))
    progress = Progress(sum(map(len, sources.values())))
    with concurrent.futures.ThreadPoolExecutor(num_threads or len(os.sched_getaffinity(0))) as pool:
        for split, source in sources.items():
            order, first = _order(source), 0
            for number, shard in enumerate(index.splits[split]):
                indices = order[first : first + shard.records].tolist()
                first += shard.records
                if _is_finished(folder, shard):
                    progress.add(shard.records)
                    continue
                records = _records(source, indices, short_side, pool)
                index = _replaced(index, split, number, _write_shard(folder, shard, records, progress))
                index.write(folder)
    progress.end()
    return index


def verify(dst: str | os.PathLike[str]) -> Index:
    """Compares every shard with its checksum in the index.

    Raises:
      ConfigError: One is not written, missing or other; names it.
    """
    folder = data_path(dst)
    index = read_index(folder)
    for shards in index.splits.values():
        for shard in shards:
            check(folder, shard, checksum=True)
    return index


class Progress:
    """Prints how far it is, every ten seconds."""

    def __init__(self, total: int):
        """`total` images."""
        self.total, self.done, self.kept, self.begin = total, 0, 0, time.monotonic()
        self._next = self.begin + _SECONDS

    def add(self, kept: int) -> None:
        """Counts images that were there already."""
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


def _splits(root: epath.Path) -> list[str]:
    return ["train", *[name for name in EVAL_FOLDERS if (root / "train").is_dir() and (root / name).is_dir()][:1]]


def _plan(sources: dict[str, Images], shard_size: int, short_side: int | None) -> Index:
    first = next(iter(sources.values()))
    splits = {}
    for split, source in sources.items():
        count = -(-len(source) // shard_size)
        lengths = [min(shard_size, len(source) - i * shard_size) for i in range(count)]
        splits[split] = tuple(Shard(file=f"{split}-{i:05}-of-{count:05}.array_record", records=n) for i, n in enumerate(lengths))
    return Index(
        class_names=first.class_names,
        channels=max(source.channels for source in sources.values()),
        short_side=short_side,
        sources={split: source.fingerprint for split, source in sources.items()},
        splits=splits,
    )


def _begin(dst: epath.Path, plan: Index) -> Index:
    """The index to go on with: that in `dst` if it is of the same plan, or the plan itself, written there."""
    try:
        dst.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{dst} cannot be made: {error.strerror}") from error
    if (dst / INDEX).exists():
        index = read_index(dst)
        if _unwritten(index) == plan:
            return index
        raise ConfigError(f"{dst} holds the shards of another source, or with other options; give another folder, or delete it")
    if dst.exists() and any(dst.iterdir()):  # a bucket has no empty folders
        raise ConfigError(f"{dst} is not empty and holds no {INDEX}; give another folder")
    plan.write(dst)
    return plan


def _unwritten(index: Index) -> Index:
    splits = {
        split: tuple(dataclasses.replace(shard, size=None, sha256=None) for shard in shards) for split, shards in index.splits.items()
    }
    return dataclasses.replace(index, splits=splits)


def _replaced(index: Index, split: str, number: int, shard: Shard) -> Index:
    shards = index.splits[split]
    return dataclasses.replace(index, splits=index.splits | {split: (*shards[:number], shard, *shards[number + 1 :])})


def _is_finished(dst: epath.Path, shard: Shard) -> bool:
    try:
        check(dst, shard)
    except ConfigError:
        return False
    return True


def _order(source: Images) -> np.ndarray:
    """Indices in the order of a hash of the paths: the same on every machine, and no class lies together."""
    return np.argsort([zlib.crc32(path.encode("utf-8", "surrogateescape")) for path in source.files], kind="stable")


def _records(source: Images, indices: Sequence[int], short_side: int | None, pool: concurrent.futures.Executor) -> Iterator[bytes]:
    make = functools.partial(_record, source, short_side)
    for start in range(0, len(indices), _AT_ONCE):
        yield from pool.map(make, indices[start : start + _AT_ONCE])


def _record(source: Images, short_side: int | None, index: int) -> bytes:
    try:
        example = source[index]
    except OSError as error:
        raise ConfigError(f"{source.name_of(index)} cannot be read: {error.strerror}") from error
    data = example["image"] if short_side is None else _shrunk(example["image"], short_side, source, index)
    return serialize(data, example["label"], source.files[index])


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
    """Writes to a temporary name, which becomes the shard's when all is on disk; what is for a bucket is written here first."""
    if is_remote(dst):
        with tempfile.TemporaryDirectory() as here:
            written = _write_shard(epath.Path(here), shard, records, progress)
            (epath.Path(here) / shard.file).copy(dst / shard.file, overwrite=True)
        return written
    temporary = dst / (shard.file + ".tmp")
    writer = ArrayRecordWriter(os.fspath(temporary), _WRITER)
    try:
        for record in records:
            writer.write(record)
            progress.step()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    writer.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    written = dataclasses.replace(shard, size=temporary.stat().length, sha256=sha256(temporary))
    temporary.replace(dst / shard.file)
    return written


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = cli.Parser(prog="python -m vitlab.data.prepare", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "src", nargs="?", help="an image folder (train/ and val/ with a folder per class, or only the folders) or a CSV of path,label"
    )
    parser.add_argument("dst", help="the folder of the shards; made if need be")
    parser.add_argument("--tfrecord", action="store_true", help="SRC is a folder of TFRecord files of tf.train.Example")
    parser.add_argument("--image_key", default=Layout.image_key, help="of the encoded image, with --tfrecord")
    parser.add_argument("--label_key", default=Layout.label_key, help="of the integer label, with --tfrecord")
    parser.add_argument("--first_label", type=int, default=0, help="label of the first class of SRC/classes.txt, with --tfrecord")
    parser.add_argument("--short_side", type=int, help="pixels to which a longer short side is shrunk; such images become JPEG")
    parser.add_argument("--shard_size", type=int, default=8192, help="images per shard")
    parser.add_argument("--split", default="", help="splits, with commas; without it all that are there")
    parser.add_argument("--num_threads", type=int, default=0, help="that read and resize; 0: one per core")
    parser.add_argument("--verify", action="store_true", help="write nothing, compare the checksums of DST")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.verify:
        index = verify(args.dst)
    elif args.src is None:
        raise ConfigError("say SRC and DST: python -m vitlab.data.prepare SRC DST")
    else:
        splits = tuple(filter(None, args.split.split(",")))
        options = {"shard_size": args.shard_size, "short_side": args.short_side, "num_threads": args.num_threads}
        layout = Layout(image_key=args.image_key, label_key=args.label_key, first_label=args.first_label)
        index = prepare(args.src, args.dst, splits=splits, tfrecord=layout if args.tfrecord else None, **options)
    for split, shards in index.splits.items():
        gigabytes = sum(shard.size or 0 for shard in shards) / 1e9
        done = "checksums agree" if args.verify else args.dst
        print(f"{split}: {sum(s.records for s in shards):,} images in {len(shards)} shards, {gigabytes:.3f} GB; {done}")
    return 0


if __name__ == "__main__":
    cli.run(main)

"""Writes array_record shards from an image folder: python -m vitlab.data.prepare SRC DST ...

Options are --short_side=N, --split=train,val and those below. With --tfrecord, SRC is a folder of
TFRecord files, ImageNet's usual layout; they are read without TensorFlow. With --source=pairs,
coco, table or tars, SRC is the value of data.data_dir, and each --file an entry of data.files; the
shards have all these fields.

The same command resumes stopped work; finished shards are kept, and one process at a time may write
to DST. To train on the shards, set data.source="shards" and data.data_dir=DST. To check the
checksums: python -m vitlab.data.prepare --verify DST.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence

from etils import epath

from vitlab import cli
from vitlab.config import ConfigError
from vitlab.data.classes import read_class_list
from vitlab.data.field_files import parse_files
from vitlab.data.field_json import fields_to_json
from vitlab.data.fields import CLASSIFICATION, fields_of
from vitlab.data.image_csv import open_images
from vitlab.data.lock import LOCK, locked
from vitlab.data.paths import data_path, is_remote, refuse_undecodable, refuse_unreadable
from vitlab.data.shard_writer import Images, labels_to_spread, temporary_name, write_shards
from vitlab.data.shards import INDEX, TEMPORARY_INDEX, DamagedIndexError, Index, Shard, check, read_index
from vitlab.data.source import FILE_SOURCES
from vitlab.data.split_folders import find_split_folders
from vitlab.data.splits import is_sliced, margin_of
from vitlab.data.tfrecord import Layout, open_tfrecords
from vitlab.terminal import LogHandler

_EXAMPLES = """examples:
  python -m vitlab.data.prepare /data/flowers /data/flowers_shards --short_side=256
  python -m vitlab.data.prepare /data/flowers/train.csv /data/flowers_shards
  python -m vitlab.data.prepare /data/imagenet_tfrecords /data/imagenet_shards --tfrecord --first_label=1
  python -m vitlab.data.prepare /data/ade20k /data/ade20k_shards --source=pairs --split=training,validation \\
      --file="image=images/{split}/{stem}.jpg" --file="segmentation=annotations/{split}/{stem}.png first=1"
  python -m vitlab.data.prepare --verify /data/flowers_shards
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """A source whose examples have other fields than an image and its class."""

    source: str  # one of `FILE_SOURCES`
    files: tuple[str, ...]  # entries as in data.files

    def open(self, src: str, splits: Sequence[str], follow_outside: bool) -> dict[str, Images]:
        """Opens the splits; without any, "train" only."""
        names = [entry.field for entry in parse_files(self.files).values() if entry.field not in ("list", "annotations", "tars")]
        wanted = None if self.source == "coco" else ["image", *(name for name in names if name != "image")]
        open_split = FILE_SOURCES[self.source]
        return {split: open_split(src, split, self.files, names=wanted, follow_outside=follow_outside) for split in splits or ("train",)}


def prepare(  # noqa: PLR0913  one argument for each of the command's
    src: str,
    dst: str | os.PathLike[str],
    *,
    splits: Sequence[str] = (),
    shard_size: int = 8192,
    short_side: int | None = None,
    num_threads: int = 0,
    tfrecord: Layout | None = None,
    fields: Fields | None = None,
    follow_outside: bool = False,
) -> Index:
    """Writes the shards of an image folder, TFRecord files or a source with other fields.

    Interrupted writing is resumed.

    Args:
      src: Path that `open_images` opens, a folder or a CSV; or a folder for `open_tfrecords`.
      dst: Folder of the shards, created if missing. It may be in a bucket; to be read, shards must
        be copied from there, or the bucket be mounted.
      splits: Names of splits. Without any: "train" and "test", "val", "validation" or "valid", if
        there is such a folder; all splits of TFRecord files.
      shard_size: Images per shard.
      short_side: Pixels of the short side. Images with a longer one are resized to it (bicubic,
        antialiased) and stored as JPEG of quality 95 without metadata, transparent pixels over
        white. Other images, and those that cannot be decoded, are copied byte for byte. None copies
        all images.
      num_threads: Threads that read and resize; 0 takes one per core.
      tfrecord: Layout of the records, if `src` holds TFRecord files.
      fields: Source of the examples, if they have other fields than an image and its class.
      follow_outside: Whether a CSV or symbolic links may lead to files outside the folder of SRC.

    Raises:
      ConfigError: SRC has no images or a damaged record, DST has other shards, is locked by another
        process or cannot be written, or an argument is out of range. Finished shards remain;
        nothing remains of an unfinished one.
    """
    if fields and (tfrecord or short_side is not None):
        raise ConfigError("--source goes neither with --tfrecord nor with --short_side, which would shrink the image alone")
    if shard_size < 1 or (short_side is not None and short_side < 1) or num_threads < 0:
        raise ConfigError(f"--shard_size={shard_size} and --short_side={short_side} must be at least 1, --num_threads={num_threads} 0")
    folder = data_path(dst)
    refuse_undecodable(folder, "shards")
    _check_names(splits)
    with refuse_unreadable(src):
        sources = fields.open(src, splits, follow_outside) if fields else _open(src, splits, tfrecord, follow_outside)
    _check_names(list(sources))
    plan = _plan(sources, shard_size, short_side)
    with _claimed(folder):
        return write_shards(folder, _begin(folder, plan), sources, num_threads)


def _check_names(splits: Sequence[str]) -> None:
    """Refuses splits whose names cannot begin a file name."""
    for split in splits:
        if is_sliced(split) or os.path.basename(split) != split or split.startswith("."):
            raise ConfigError(f'--split: "{split}" must be the name of a split; slices are taken when the shards are read')
        refuse_undecodable(split, "the shards")


def _open(src: str, splits: Sequence[str], tfrecord: Layout | None, follow_outside: bool) -> dict[str, Images]:
    if tfrecord:
        return dict(open_tfrecords(src, splits, tfrecord, follow_outside=follow_outside))
    return {split: open_images(src, split, follow_outside=follow_outside) for split in splits or _splits(data_path(src))}


@contextlib.contextmanager
def _claimed(folder: epath.Path) -> Iterator[None]:
    """Creates and locks the folder.

    In a bucket there is no lock: two processes write the same bytes, and files appear whole.

    Raises:
      ConfigError: The folder cannot be created or written, or another process has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    with contextlib.nullcontext() if is_remote(folder) else locked(folder):
        try:
            yield
        except OSError as error:
            what = f"{error.filename or folder} cannot be written: {error.strerror or error}"
            raise ConfigError(f"{what}; mend that and run the same command again: finished shards are kept") from error


def verify(dst: str | os.PathLike[str]) -> Index:
    """Compares every shard with its checksum in the index.

    Raises:
      ConfigError: A shard is unwritten, missing, unreadable or differs; the message names it.
    """
    folder = data_path(dst)
    index = read_index(folder)
    with refuse_unreadable(folder):
        for shards in index.splits.values():
            for shard in shards:
                check(folder, shard, checksum=True)
    return index


def _splits(root: epath.Path) -> list[str]:
    if not root.is_dir():  # a CSV, or missing
        return ["train"]
    found = find_split_folders(root, "train", read_class_list(root))
    return ["train", *filter(None, [found.evaluation if found.train != root else None])]


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
        margins={split: margin_of(labels_to_spread(source)) for split, source in sources.items()},
        fields=None if fields_of(first) is CLASSIFICATION else fields_to_json(fields_of(first)),
    )


def _begin(dst: epath.Path, plan: Index) -> Index:
    """The index to continue with: that in `dst` if it belongs to `plan`, or `plan`, then written.

    A folder with nothing but files of the plan is taken over even if its index is missing or
    damaged, as after a kill or a disk error.
    """
    shards = [shard.file for files in plan.splits.values() for shard in files]
    known = {LOCK, INDEX, TEMPORARY_INDEX, *shards, *map(temporary_name, shards)}
    others = sorted(path.name for path in dst.iterdir() if path.name not in known and path != dst) if dst.exists() else []
    try:
        index = read_index(dst) if (dst / INDEX).exists() else None
    except DamagedIndexError as error:
        if others:
            raise ConfigError(f"{dst / INDEX} is damaged, and {others[0]} lies beside it; give another folder") from error
        index = None
    if index and _unwritten(index) == plan:
        return index
    if index:
        raise ConfigError(f"{dst} holds the shards of another source, or with other options; give another folder, or delete it")
    if others:
        raise ConfigError(f"{dst} is not empty and holds no {INDEX} (but {others[0]}); give another folder")
    plan.write(dst)
    return plan


def _unwritten(index: Index) -> Index:
    splits = {
        split: tuple(dataclasses.replace(shard, size=None, sha256=None) for shard in shards) for split, shards in index.splits.items()
    }
    return dataclasses.replace(index, splits=splits)


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler()])
    if args.verify:
        if args.src is not None:
            raise ConfigError(f"--verify checks the shards of one folder, and {args.src} and {args.dst} are two: leave SRC out")
        index = verify(args.dst)
    elif args.src is None:
        raise ConfigError("say SRC and DST: python -m vitlab.data.prepare SRC DST")
    else:
        options = {"shard_size": args.shard_size, "short_side": args.short_side, "num_threads": args.num_threads}
        splits = tuple(filter(None, args.split.split(",")))
        readers = {"tfrecord": _layout(args), "fields": _fields(args)}
        index = prepare(args.src, args.dst, splits=splits, follow_outside=args.follow_outside, **readers, **options)
    for split, shards in index.splits.items():
        gigabytes = sum(shard.size or 0 for shard in shards) / 1e9
        done = "checksums agree" if args.verify else args.dst
        print(f"{split}: {sum(s.records for s in shards):,} images in {len(shards)} shards, {gigabytes:.3f} GB; {done}")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m vitlab.data.prepare",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "src", nargs="?", help="an image folder (train/ and val/ with a folder per class, or only the folders) or a CSV of path,label"
    )
    parser.add_argument("dst", help="the folder of the shards; made if need be")
    parser.add_argument("--short_side", type=int, help="pixels to which a longer short side is shrunk; such images become JPEG")
    parser.add_argument("--shard_size", type=int, default=8192, help="images per shard (8192)")
    parser.add_argument("--split", default="", help="splits, with commas; without it all that are there")
    parser.add_argument("--num_threads", type=int, default=0, help="threads that read and resize; 0: one per core")
    parser.add_argument("--follow_outside", action="store_true", help="also read files outside SRC that a CSV or symbolic links lead to")
    parser.add_argument("--verify", action="store_true", help="write nothing, compare the checksums of DST")
    parser.add_argument("--tfrecord", action="store_true", help="SRC is a folder of TFRecord files of tf.train.Example")
    parser.add_argument("--image_key", help=f"with --tfrecord: feature of the encoded image ({Layout.image_key})")
    parser.add_argument("--label_key", help=f"with --tfrecord: feature of the integer label ({Layout.label_key})")
    parser.add_argument("--first_label", type=int, help="with --tfrecord: label of the first class of SRC/classes.txt (0)")
    parser.add_argument("--source", choices=tuple(FILE_SOURCES), help="SRC has other fields than a class: the kind of data.source")
    parser.add_argument(
        "--file", action="append", default=[], help="with --source: FIELD=PLACE, an entry of data.files; again for each field"
    )
    return parser


def _fields(args: argparse.Namespace) -> Fields | None:
    if args.file and args.source is None:
        raise ConfigError("--file says where a field lies: give --source=pairs, coco, table or tars too")
    return None if args.source is None else Fields(source=args.source, files=tuple(args.file))


def _layout(args: argparse.Namespace) -> Layout | None:
    """Layout of TFRecord files by the arguments; None if SRC holds no TFRecord files."""
    given = {key: value for key in ("image_key", "label_key", "first_label") if (value := getattr(args, key)) is not None}
    if given and not args.tfrecord:
        raise ConfigError(f"--{next(iter(given))} is for TFRecord files: give --tfrecord too")
    return Layout(**given) if args.tfrecord else None


if __name__ == "__main__":
    cli.run(main)

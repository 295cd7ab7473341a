"""Images in folders: one folder per class, anywhere below it the files.

Two layouts: `root/<class>/...` (one split, "train") and `root/<split>/<class>/...`. A file root/classes.txt, one name per line,
fixes the order of the classes.
"""

import collections
import contextlib
import hashlib
import io
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vitlab.config import ConfigError, near_misses
from vitlab.data.paths import Fence, data_path, files_below, is_remote, join, read_bytes
from vitlab.data.splits import is_sliced, split_name, split_range

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
CLASS_LIST = "classes.txt"
EVAL_FOLDERS = ("test", "val", "validation", "valid")
_PROBES = 16  # files whose headers say whether the images are grey


class ImageFolderSource:
    """The files of one split; `__getitem__` reads one, nothing is kept."""

    def __init__(self, root: epath.Path, files: Sequence[str], labels: np.ndarray, sizes: np.ndarray, class_names: tuple[str, ...]):
        """`files` are relative to `root`, see `join`; `labels` int32 [n], indices into `class_names`; `sizes` int64 [n], bytes."""
        self.root, self.files, self.labels, self.class_names = root, tuple(files), labels, class_names
        self._folder = os.fspath(root)
        digest = hashlib.blake2b("\0".join((*class_names, *self.files)).encode("utf-8", "surrogateescape"), digest_size=8)
        digest.update(sizes.tobytes() + labels.tobytes())
        self.fingerprint = digest.hexdigest()
        self.channels = channels_of(self._readable(probes(len(self.files))))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_bytes(join(self._folder, self.files[index])), "label": int(self.labels[index])}

    def _readable(self, indices: Iterable[int]) -> Iterator[bytes]:
        for index in indices:
            with contextlib.suppress(OSError):
                yield read_bytes(join(self._folder, self.files[index]))

    def name_of(self, index: int) -> str:
        """The file's path."""
        return join(self._folder, self.files[index])


def open_image_folder(data_dir: str | None, split: str, *, follow_outside: bool = False) -> ImageFolderSource:
    """Opens one split of a class-per-folder tree.

    The classes are those of classes.txt in the root, which need not all have images, or else the sorted folders of the training
    split, also for evaluation, so that a class without evaluation images shifts no label. A slice takes a fixed pseudo-random
    share of the files, so "train[:90%]" and "train[90%:]" are disjoint and hold every class. Hidden folders and files of other
    extensions are passed over.

    Args:
      data_dir: The root, here or in a bucket ("gs://bucket/folder").
      split: A folder below the root, with an optional slice; "train" is the root itself if no folder has that name.
        "test" also takes a folder named "val", "validation" or "valid", and says so in the log.
      follow_outside: Whether symbolic links may lead out of the root.

    Raises:
      ConfigError: No root, no such split, no images, fewer than two classes, an empty class, a class that classes.txt or the
        training split lacks, or, unless `follow_outside`, a symbolic link that leads out of the root.
    """
    if data_dir is None:
        raise ConfigError('data.source="image_folder" needs data.data_dir, the folder that holds one folder per class')
    root = data_path(data_dir)
    if not root.is_dir():
        raise ConfigError(f"data.data_dir={data_dir} {'is no folder' if root.exists() else 'does not exist'}")
    train_folder = root / "train" if (root / "train").is_dir() else root
    folder, fence = _split_folder(root, split_name(split)), Fence(root, follow_outside=follow_outside)
    fence.check(os.fspath(folder))
    listed = read_class_list(root)
    class_names = listed or _class_folders(train_folder)
    if len(class_names) < 2:
        raise ConfigError(
            f"{train_folder} has {_count(len(class_names), 'class folder')}; it needs one folder per class and at least 2 classes"
        )
    unknown = sorted(set(_class_folders(folder)) - set(class_names))
    if unknown:
        where = root / CLASS_LIST if listed else train_folder
        raise ConfigError(f'{folder} has a class "{unknown[0]}" that {where} lacks; {near_misses(unknown[0], class_names)}')
    files, labels, sizes = _scan(folder, class_names, fence)
    empty = [name for label, name in enumerate(class_names) if label not in set(labels)]
    if not files or (folder == train_folder and empty and not listed):
        raise ConfigError(f"{folder / empty[0] if files else folder} holds no image ({', '.join(sorted(EXTENSIONS))})")
    order = slice_order(files, split) if is_sliced(split) else np.arange(len(files))
    return ImageFolderSource(
        folder, [files[i] for i in order], np.array(labels, np.int32)[order], np.array(sizes, np.int64)[order], class_names
    )


def read_class_list(folder: epath.Path) -> tuple[str, ...] | None:
    """The lines of classes.txt in a folder, without empty ones; None if there is no such file.

    Raises:
      ConfigError: A name comes twice, there are fewer than two, or it is no text in UTF-8.
    """
    path = folder / CLASS_LIST
    if not path.is_file():
        return None
    try:
        names = tuple(filter(None, map(str.strip, path.read_bytes().decode("utf-8-sig").splitlines())))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8") from error
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f'{path} names "{twice[0]}" more than once')
    if len(names) < 2:
        raise ConfigError(f"{path} names {_count(len(names), 'class')}; at least 2 are needed")
    return names


def _split_folder(root: epath.Path, name: str) -> epath.Path:
    if (root / name).is_dir():
        return root / name
    if name == "train" and not any((root / other).is_dir() for other in EVAL_FOLDERS):
        return root
    if name == "test":
        for other in EVAL_FOLDERS:
            if (root / other).is_dir():
                logger.info('%s has no folder "test"; "%s" is used', root, other)
                return root / other
    if not (root / "train").is_dir():
        raise ConfigError(
            f'{root} has no folder "{name}"; make one, or set data.train_split="train[:90%]" and data.eval_split="train[90%:]"'
        )
    raise ConfigError(f'{root} has no folder "{name}"; {near_misses(name, _class_folders(root))}')


def _class_folders(folder: epath.Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in _entries(folder) if not path.name.startswith("__") and path.is_dir()))


def _scan(folder: epath.Path, class_names: Sequence[str], fence: Fence) -> tuple[list[str], list[int], list[int]]:
    """Paths relative to `folder`, labels and sizes in bytes, class by class, each sorted by path."""
    files, labels, sizes = [], [], []
    for label, name in enumerate(class_names):
        if (folder / name).is_dir():
            fence.check(os.fspath(folder / name))
            found = sorted(_walk_remote(folder / name, name) if is_remote(folder) else _walk(os.fspath(folder / name), name, fence))
            files += [path for path, _ in found]
            sizes += [size for _, size in found]
            labels += [label] * len(found)
    return files, labels, sizes


def _walk(path: str, relative: str, fence: Fence) -> Iterator[tuple[str, int]]:
    for name, size in files_below(path, fence):
        if os.path.splitext(name)[1].lower() in EXTENSIONS:
            yield f"{relative}/{name}", size


def _entries(folder: epath.Path) -> Iterator[epath.Path]:
    """What lies in a folder, but for what is hidden; some buckets list the folder too."""
    return (path for path in folder.iterdir() if not path.name.startswith(".") and path != folder)


def _walk_remote(folder: epath.Path, relative: str) -> Iterator[tuple[str, int]]:
    for path in _entries(folder):
        if path.suffix.lower() in EXTENSIONS:
            yield f"{relative}/{path.name}", path.stat().length
        elif path.is_dir():
            yield from _walk_remote(path, f"{relative}/{path.name}")


def slice_order(files: Sequence[str], split: str) -> np.ndarray:
    """Sorted indices of the files in the slice, taken in the order of a hash of their paths."""
    hashes = np.array([zlib.crc32(path.encode("utf-8", "surrogateescape")) for path in files])
    return np.sort(np.argsort(hashes, kind="stable")[split_range(split, len(files))])


def channels_of(images: Iterable[bytes]) -> int:
    """1 if the headers of the images are all grey, else 3."""
    modes = []
    for data in images:
        try:
            with Image.open(io.BytesIO(data)) as image:
                modes.append(image.mode)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    return 1 if modes and all(mode[0] in "1LIF" for mode in modes) else 3


def probes(count: int) -> range:
    """Indices of a few images spread over a list of so many."""
    return range(0, count, max(1, count // _PROBES))


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"

"""Images in folders, one folder per class, with files at any depth below it.

The two layouts are `root/<class>/...` (one split, "train") and `root/<split>/<class>/...`. A file
root/classes.txt, one name per line, fixes the order of the classes.
"""

import collections
import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitlab.config import ConfigError, near_misses
from vitlab.data.channels import PROBES, channels_of
from vitlab.data.classes import CLASS_LIST, class_order, read_class_list
from vitlab.data.formats import extensions, remedy
from vitlab.data.paths import Fence, data_path, files_below, is_remote, join, read_bytes
from vitlab.data.split_folders import class_folders, entries, find_split_folders
from vitlab.data.splits import is_sliced, split_name, stratified

logger = logging.getLogger(__name__)

_REMOTE_PROBES = 2**9  # images of a bucket to probe for colour; each is read whole


class ImageFolderSource:
    """The files of one split; each access reads a file, and none is cached."""

    def __init__(self, root: epath.Path, files: Sequence[str], labels: np.ndarray, sizes: np.ndarray, class_names: tuple[str, ...]):
        """Takes the files with their labels and sizes.

        Args:
          root: The root folder.
          files: Paths relative to `root`, see `join`.
          labels: int32 [n], indices into `class_names`.
          sizes: int64 [n], in bytes.
          class_names: Names of the classes.
        """
        self.root, self.files, self.labels, self.class_names = root, tuple(files), labels, class_names
        self._folder = os.fspath(root)
        digest = hashlib.blake2b("\0".join((*class_names, *self.files)).encode("utf-8", "surrogateescape"), digest_size=8)
        digest.update(sizes.tobytes() + labels.tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def channels(self) -> int:
        """Channels by the images' headers: 1 if all are grey, else 3; see `channels_of`.

        The first access reads the headers.
        """
        return self._channels

    @functools.cached_property
    def _channels(self) -> int:
        return channels_of(self._read_head, self.labels, probes=_REMOTE_PROBES if is_remote(self.root) else PROBES)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_bytes(join(self._folder, self.files[index])), "label": int(self.labels[index])}

    def _read_head(self, index: int, size: int | None) -> bytes:
        return read_bytes(join(self._folder, self.files[index]), size)

    def name_of(self, index: int) -> str:
        """Path of the image's file."""
        return join(self._folder, self.files[index])


def open_image_folder(data_dir: str | None, split: str, *, follow_outside: bool = False) -> ImageFolderSource:
    """Opens one split of a class-per-folder tree.

    The classes are the names in root/classes.txt, which may include classes without images. Without
    that file they are the folders of the training split in the order of `class_order`, for
    evaluation too, so that a class without evaluation images shifts no label. A slice takes a fixed
    pseudo-random part of each class (see `stratified`): "train[:90%]" and "train[90%:]" are
    disjoint, and both have images of every class of at least two. Hidden folders are skipped; files
    with other extensions are counted in the log.

    Args:
      data_dir: The root, on a local disk or in a bucket ("gs://bucket/folder").
      split: A folder below the root, with an optional slice; "train" is the root itself if its
        folders are the classes (see `find_split_folders`). "test" also accepts a folder named
        "val", "validation", "valid" or "testing", and logs it.
      follow_outside: Whether symbolic links may lead out of the root.

    Raises:
      ConfigError: There is no such root or split, a folder may be either split or class, there are
        no images or fewer than two classes, a class is empty or missing in classes.txt or the
        training split, or a symbolic link leads out of the root without `follow_outside`.
    """
    if data_dir is None:
        raise ConfigError('data.source="image_folder" needs data.data_dir, the folder that holds one folder per class')
    root = data_path(data_dir)
    if not root.is_dir():
        raise ConfigError(f"data.data_dir={data_dir} {'is no folder' if root.exists() else 'does not exist'}")
    fence = Fence(root, follow_outside=follow_outside)
    fence.check(os.path.join(root, split_name(split)))
    listed = read_class_list(root)
    splits = find_split_folders(root, split, listed)
    folder = splits.folder_of(split)
    fence.check(os.fspath(folder))
    train_folder = splits.train or folder
    class_names = listed or class_order(path.name for path in class_folders(train_folder))
    if len(class_names) < 2:
        raise ConfigError(
            f"{train_folder} has {_count(len(class_names), 'class folder')}; it needs one folder per class and at least 2 classes"
        )
    unknown = sorted({path.name for path in class_folders(folder)} - set(class_names))
    if unknown:
        where = root / CLASS_LIST if listed else train_folder
        raise ConfigError(f'{folder} has a class "{unknown[0]}" that {where} lacks; {near_misses(unknown[0], class_names)}')
    files, labels, sizes = _scan(folder, class_names, fence)
    present = set(labels)
    empty = [name for label, name in enumerate(class_names) if label not in present]
    if not files or (folder == train_folder and empty and not listed):
        raise ConfigError(f"{folder / empty[0] if files else folder} holds no image ({', '.join(sorted(extensions()))})")
    kept = stratified(split, files, np.array(labels)) if is_sliced(split) else np.arange(len(files))
    return ImageFolderSource(
        folder, [files[i] for i in kept], np.array(labels, np.int32)[kept], np.array(sizes, np.int64)[kept], class_names
    )


def _scan(folder: epath.Path, class_names: Sequence[str], fence: Fence) -> tuple[list[str], list[int], list[int]]:
    """Paths relative to `folder`, labels and sizes in bytes; by class, then by path.

    Files that are no images are counted in the log.
    """
    files, labels, sizes = [], [], []
    others: collections.Counter[str] = collections.Counter()
    for label, name in enumerate(class_names):
        if (folder / name).is_dir():
            fence.check(os.fspath(folder / name))
            found = sorted(_walk_remote(folder / name) if is_remote(folder) else files_below(os.fspath(folder / name), fence))
            for path, size in found:
                extension = os.path.splitext(path)[1].lower()
                if extension not in extensions():
                    others[extension] += 1
                    continue
                files.append(f"{name}/{path}")
                sizes.append(size)
                labels.append(label)
    if others:
        _warn(f"{folder}: {_left_out(others)}")
    return files, labels, sizes


@functools.cache
def _warn(text: str) -> None:
    """Logs a text once, even if several slices of its folder are opened."""
    logger.warning("%s", text)


def _left_out(others: Mapping[str, int]) -> str:
    """One line that counts files by extension, most frequent first, with remedies."""
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count} {ascii(extension)[1:-1] or 'without extension'}" for extension, count in ordered[:8]]
    if len(ordered) > 8:
        kinds.append(f"{sum(count for _, count in ordered[8:])} others")
    remedies = dict.fromkeys(filter(None, (remedy(extension) for extension, _ in ordered)))
    total = sum(others.values())
    return f"{_count(total, 'file')} left out: {', '.join(kinds)}" + "".join(f"; {text}" for text in remedies)


def _walk_remote(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    for path in entries(folder):
        if path.suffix.lower() not in extensions() and path.is_dir():
            yield from _walk_remote(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path.stat().length


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"

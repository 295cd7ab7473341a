"""Distinguishes splits from classes among folders: `root/<split>/<class>` or `root/<class>`.

A folder named like a split is a split if it has class folders; if it has images directly, it is a
class.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence

from etils import epath

from vitlab.config import ConfigError, near_misses
from vitlab.data.classes import CLASS_LIST
from vitlab.data.formats import extensions
from vitlab.data.paths import is_remote
from vitlab.data.splits import is_sliced, split_name

logger = logging.getLogger(__name__)

TRAIN_FOLDERS = ("train", "training")
EVAL_FOLDERS = ("test", "val", "validation", "valid", "testing")
_SLICES = 'data.train_split="train[:90%]" and data.eval_split="train[90%:]"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitFolders:
    """The splits of a root; empty if its folders are the classes."""

    root: epath.Path
    splits: dict[str, epath.Path]  # name in lower case -> folder with class folders

    @property
    def train(self) -> epath.Path | None:
        """The folder whose folders are the classes; None if there is no training split."""
        if not self.splits:
            return self.root
        return next((self.splits[name] for name in TRAIN_FOLDERS if name in self.splits), None)

    @property
    def evaluation(self) -> str | None:
        """Name of the first evaluation split, in lower case; None if there is none."""
        return next((name for name in EVAL_FOLDERS if name in self.splits), None)

    def folder_of(self, split: str) -> epath.Path:
        """The folder of a split; a slice is ignored.

        "train" is the root itself if its folders are the classes. "test" also accepts an evaluation
        split of another name.

        Raises:
          ConfigError: There is no such split.
        """
        name = split_name(split)
        if name in TRAIN_FOLDERS and self.train is not None:
            return self.train
        if name.lower() in self.splits:
            return self.splits[name.lower()]
        if self.splits and (self.root / name).is_dir():
            return self.root / name
        if name == "test" and self.evaluation is not None:
            logger.info('%s has no folder "test"; "%s" is used', self.root, self.splits[self.evaluation].name)
            return self.splits[self.evaluation]
        if self.splits and self.train is not None:
            raise ConfigError(f'{self.root} has no folder "{name}"; {near_misses(name, [path.name for path in self.splits.values()])}')
        what = f'"{name}" is a class of {self.root}' if (self.root / name).is_dir() else f'{self.root} has no folder "{name}"'
        raise ConfigError(f"{what}; make one that holds a folder per class, or set {_SLICES}")


def find_split_folders(root: epath.Path, split: str, class_list: Sequence[str] | None) -> SplitFolders:
    """Distinguishes the splits of a root from its classes.

    Args:
      root: A folder.
      split: The requested split; with a slice, images need not lie in split folders.
      class_list: The names in classes.txt, which decide if they name a folder of the root.

    Raises:
      ConfigError: Both readings are possible; the message names the folders and the remedy.
    """
    folders = list(class_folders(root))
    named = {path.name.lower(): path for path in sorted(folders, key=lambda path: path.name == path.name.lower())}
    named = {name: path for name, path in named.items() if name in TRAIN_FOLDERS + EVAL_FOLDERS}
    if not named or (class_list and any(path.name in class_list for path in named.values())):
        return SplitFolders(root=root, splits={})
    kinds = {name: _holds(path) for name, path in named.items()}
    splits = {name: named[name] for name, (holds_folders, _) in kinds.items() if holds_folders}
    if class_list:
        return SplitFolders(root=root, splits=splits)
    others = [path for path in folders if path not in named.values() and _holds(path)[1]]
    with_images = [named[name] for name, (_, holds_images) in kinds.items() if holds_images]
    train = next((name for name in TRAIN_FOLDERS if name in named), None)
    if splits:
        one_of_many = is_sliced(split) and others and len(splits) == 1
        train_is_class = train is not None and train not in splits and kinds[train][1]
        both = any(path in splits.values() for path in with_images)
        if train_is_class or one_of_many or (both and others):
            raise ConfigError(_ambiguous(root, [*splits.values()], [*with_images, *others]))
    elif with_images and not others and not is_sliced(split):
        raise ConfigError(_ambiguous(root, [], with_images))
    return SplitFolders(root=root, splits=splits)


def class_folders(folder: epath.Path) -> Iterator[epath.Path]:
    """The folders in a folder, without hidden ones and the likes of __MACOSX."""
    return (path for path in entries(folder) if not path.name.startswith("__") and path.is_dir())


def entries(folder: epath.Path) -> Iterator[epath.Path]:
    """Entries of a folder, without hidden ones and the folder itself, which some buckets list."""
    return (path for path in folder.iterdir() if not path.name.startswith(".") and path != folder)


def _holds(folder: epath.Path) -> tuple[bool, bool]:
    """Whether a folder directly has folders, and whether it has images.

    The search stops when both are found.
    """
    holds_folders = holds_images = False
    for name, is_folder in _children(folder):
        if is_folder and not name.startswith("__"):
            holds_folders = True
        elif not is_folder and os.path.splitext(name)[1].lower() in extensions():
            holds_images = True
        if holds_folders and holds_images:
            break
    return holds_folders, holds_images


def _children(folder: epath.Path) -> Iterator[tuple[str, bool]]:
    if is_remote(folder):
        yield from ((path.name, path.suffix.lower() not in extensions() and path.is_dir()) for path in entries(folder))
        return
    with os.scandir(folder) as found:
        yield from ((entry.name, entry.is_dir()) for entry in found if not entry.name.startswith("."))


def _ambiguous(root: epath.Path, splits: Sequence[epath.Path], classes: Sequence[epath.Path]) -> str:
    def names(paths: Sequence[epath.Path]) -> str:
        return ", ".join(f'"{path.name}"' for path in paths[:4]) + (", ..." if len(paths) > 4 else "")

    hold = f"{names(splits)} hold{'s' if len(splits) == 1 else ''} class folders and " if splits else ""
    return (
        f"{root} can be read in two ways: {hold}{names(classes)} hold{'s' if len(classes) == 1 else ''} images. If these are splits, put a "
        f"folder per class into each and nothing else beside them; if they are classes, list all classes in {root / CLASS_LIST}, one name "
        "per line"
    )

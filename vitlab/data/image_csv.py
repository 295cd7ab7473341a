"""Images listed in a CSV of path,label."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from etils import epath

from vitlab.config import ConfigError, near_misses
from vitlab.data.classes import CLASS_LIST, class_order, read_class_list
from vitlab.data.image_folder import ImageFolderSource, open_image_folder
from vitlab.data.paths import Fence, data_path, size_of
from vitlab.data.splits import is_sliced, split_name, stratified

_HEADERS = ("path", "file", "filename", "file_name", "image", "image_path")  # first cells that mark a header line


def open_images(data_dir: str | None, split: str, *, follow_outside: bool = False) -> ImageFolderSource:
    """Opens a class-per-folder tree, or a CSV if `data_dir` is one.

    Raises:
      ConfigError: As `open_image_folder` and `open_image_csv`.
    """
    if data_dir is not None and data_dir.lower().endswith(".csv"):
        return open_image_csv(data_path(data_dir), split, follow_outside=follow_outside)
    return open_image_folder(data_dir, split, follow_outside=follow_outside)


def open_image_csv(path: epath.Path, split: str, *, follow_outside: bool = False) -> ImageFolderSource:
    """Opens the files of a CSV in UTF-8, one "path,label" per line; a header line is optional.

    Paths are relative to the folder of the CSV. All files must lie below it, after ".." and
    symbolic links are resolved, unless `follow_outside`; a path may also be in a bucket
    ("gs://bucket/0.jpg"). The classes are the labels in the order of `class_order`, or the names in
    a file classes.txt beside the CSV. A slice takes a fixed pseudo-random part of each class, as in
    `open_image_folder`.

    Args:
      path: The CSV.
      split: "train", the only split, with an optional slice.
      follow_outside: Whether files may lie anywhere.

    Raises:
      ConfigError: There is no such file or split, a line has not two cells, a file is missing, is
        no regular file or lies outside the folder, a label is unknown, or there are fewer than two
        classes.
    """
    if not path.is_file():
        raise ConfigError(f"data.data_dir={path} {'is no file' if path.exists() else 'does not exist'}")
    if split_name(split) != "train":
        raise ConfigError(f'{path} has only the split "train"; set data.train_split="train[:90%]" and data.eval_split="train[90%:]"')
    lines = _read(path)
    names = [label for _, _, label in lines]
    class_names = read_class_list(path.parent) or class_order(names)
    if len(class_names) < 2:
        raise ConfigError(f"{path} has {len(class_names) or 'no'} class; at least 2 are needed")
    labels_of = {name: label for label, name in enumerate(class_names)}
    for number, _, label in lines:
        if label not in labels_of:
            raise ConfigError(f'{path}, line {number}: {CLASS_LIST} has no class "{label}"; {near_misses(label, class_names)}')
    files, sizes = [file for _, file, _ in lines], _sizes(path, lines, Fence(path.parent, follow_outside=follow_outside))
    labels = np.array([labels_of[name] for name in names], np.int32)
    order = stratified(split, files, labels) if is_sliced(split) else np.arange(len(files))
    return ImageFolderSource(path.parent, [files[i] for i in order], labels[order], sizes[order], class_names)


def _read(path: epath.Path) -> list[tuple[int, str, str]]:
    """Line number, file and label of each line."""
    lines = []
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or (not lines and cells[0].lower() in _HEADERS):
                continue
            if len(cells) != 2 or not all(cells):
                raise ConfigError(f'{path}, line {reader.line_num}: "{",".join(row)}" must be path,label')
            lines.append((reader.line_num, cells[0], cells[1]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV in UTF-8: {error}") from error
    if not lines:
        raise ConfigError(f"{path} lists no image; each line must be path,label")
    return lines


def _sizes(path: epath.Path, lines: Sequence[tuple[int, str, str]], fence: Fence) -> np.ndarray:
    """Size in bytes of each file, int64."""
    sizes = np.empty(len(lines), np.int64)
    for i, (number, file, _) in enumerate(lines):
        try:
            sizes[i] = size_of(fence.path_of(file))
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        except OSError as error:
            why = f'"{file}" cannot be read: {error.strerror or error} (from {path.parent})'
            raise ConfigError(f"{path}, line {number}: {why}") from error
    return sizes

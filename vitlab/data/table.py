"""Images listed in a table, with numbers or classes in its columns.

`data.files` names the column of each field:

- "image=file"
- "value=mos": a number; an empty cell is void
- "values=x,y,z": several numbers
- "count=people"
- "label=breed"
- "labels=tags": names separated by | or ;
- "labels=cat,dog": columns of 1, 0 or nothing
"""

import csv
import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitlab.config import ConfigError, near_misses
from vitlab.data.channels import channels_of
from vitlab.data.classes import class_order, read_class_list
from vitlab.data.field_files import Entry, parse_files
from vitlab.data.fields import Image, Kind, Label, Labels, Value, declared_channels
from vitlab.data.paths import Fence, data_path, join, read_bytes, size_of
from vitlab.data.splits import split_name, stratified

_SEPARATORS = re.compile(r"[|;]")
_SPLIT_COLUMN = "split"
Row = dict[str, str]


class TableSource:
    """The images of one split; only their names and the columns are held in memory."""

    def __init__(
        self, root: epath.Path, files: Sequence[str], columns: Mapping[str, np.ndarray], fields: Mapping[str, Kind], sizes: np.ndarray
    ):
        """Takes file sizes, int64 [n] bytes, and columns [n, ...] of all fields but the image."""
        self.root, self.files, self.columns, self.fields = root, tuple(files), dict(columns), dict(fields)
        self.labels = self.columns.get("label")  # None without a label
        self._folder = os.fspath(root)
        digest = hashlib.blake2b(repr((self.files, fields)).encode("utf-8", "surrogateescape"), digest_size=8)
        for array in (sizes, *columns.values()):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the label or the labels; () without them."""
        return next((kind.class_names for kind in self.fields.values() if isinstance(kind, (Label, Labels))), ())

    @functools.cached_property
    def channels(self) -> int:
        """Channels that `data.files` declares, else by the images' headers: 1 if all are grey."""
        return declared_channels(self.fields) or channels_of(
            lambda index, size: read_bytes(join(self._folder, self.files[index]), size), np.zeros(len(self), np.int64)
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_bytes(join(self._folder, self.files[index]))
        return {"image": image, **{name: column[index] for name, column in self.columns.items()}}

    def name_of(self, index: int) -> str:
        """Path of the image's file."""
        return join(self._folder, self.files[index])


def open_table(
    data_dir: str | None, split: str, files: Sequence[str], *, names: Sequence[str] | None = None, follow_outside: bool = False
) -> TableSource:
    """Opens one split of a CSV, or of a TSV (by its extension), in UTF-8.

    The first line names the columns. Paths are relative to the folder of the table. Rows belong to
    the split in their column "split", or the path of the table has {split}; otherwise the only
    split is "train". A slice takes a fixed pseudo-random part.

    Args:
      data_dir: The table.
      split: The split.
      files: Entries as in `data.files`: the column of each field; "image" may be left out if the
        first column has the files.
      names: Fields to read; None for all that have a column.
      follow_outside: Whether files may lie outside the table's folder.

    Raises:
      ConfigError: A table, column, split or file is missing, or a cell is no number where one is
        required; the message names the line.
    """
    if data_dir is None:
        raise ConfigError('data.source="table" needs data.data_dir, a CSV or TSV whose first line names the columns')
    name = split_name(split)
    path = data_path(data_dir.replace("{split}", name))
    rows = _of_split(_read(path), path, name, in_path="{split}" in data_dir)
    entries = parse_files(files)
    columns = list(rows[0][1])
    image = entries["image"].place if "image" in entries else columns[0]
    _check_columns(path, columns, [image])
    kinds: dict[str, Kind] = {"image": Image()}
    values: dict[str, np.ndarray] = {}
    for field, entry in entries.items():
        if field != "image" and (names is None or field in names):
            _check_columns(path, columns, entry.place.split(","))
            kinds[field], values[field] = _column(path, entry, rows)
    paths = [row[image].strip() for _, row in rows]
    sizes = _sizes(path, rows, paths, follow_outside)
    order = stratified(split, paths, np.zeros(len(paths), np.int32)) if split != name else np.arange(len(paths))
    return TableSource(path.parent, [paths[i] for i in order], {key: column[order] for key, column in values.items()}, kinds, sizes[order])


def _read(path: epath.Path) -> list[tuple[int, Row]]:
    """Line number and cells of each row."""
    if not path.is_file():
        raise ConfigError(f"data.data_dir={path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, delimiter="\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"{path}, line {reader.line_num}: the first line names {len(reader.fieldnames or ())} columns, this has others"
                )
            rows.append((reader.line_num, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no table in UTF-8: {error}") from error
    if not rows:
        raise ConfigError(f"{path} lists no image; its first line names the columns, and each other line is an image")
    return rows


def _of_split(rows: list[tuple[int, Row]], path: epath.Path, split: str, *, in_path: bool) -> list[tuple[int, Row]]:
    if in_path:
        return rows
    if _SPLIT_COLUMN in rows[0][1]:
        there = dict.fromkeys(row[_SPLIT_COLUMN].strip() for _, row in rows)
        if split not in there:
            raise ConfigError(f'{path} has no split "{split}" in its column "{_SPLIT_COLUMN}"; {near_misses(split, there)}')
        return [(number, row) for number, row in rows if row[_SPLIT_COLUMN].strip() == split]
    if split != "train":
        raise ConfigError(
            f'{path} has only the split "train": set data.train_split="train[:90%]" and data.eval_split="train[90%:]", or give it a column '
            f'"{_SPLIT_COLUMN}"'
        )
    return rows


def _check_columns(path: epath.Path, columns: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in columns:
            raise ConfigError(f'{path} has no column "{column}"; {near_misses(column, columns)}')


def _column(path: epath.Path, entry: Entry, rows: Sequence[tuple[int, Row]]) -> tuple[Kind, np.ndarray]:
    """Kind and values of a field."""
    columns = tuple(entry.place.split(","))
    if entry.field == "label":
        return _labels(path, columns[0], rows)
    if entry.field == "labels" and len(columns) == 1:
        return _tags(path, columns[0], rows)
    numbers = np.array([[_number(path, line, row[column]) for column in columns] for line, row in rows])
    if entry.field == "labels":
        if not np.isin(numbers[np.isfinite(numbers)], (-1, 0, 1)).all():
            raise ConfigError(f"{entry.text}: {path} has other numbers than 1, 0, -1 and nothing (unknown)")
        return Labels(class_names=columns), np.where(np.isnan(numbers), -1, numbers).astype(np.int8)
    if len(columns) == 1:
        return Value(counts=entry.field == "count"), numbers[:, 0].astype(np.float32)
    return Value(names=columns), numbers.astype(np.float32)


def _labels(path: epath.Path, column: str, rows: Sequence[tuple[int, Row]]) -> tuple[Kind, np.ndarray]:
    names = [row[column].strip() for _, row in rows]
    class_names = read_class_list(path.parent) or class_order(names)
    return Label(class_names=class_names), np.array([_class(path, class_names, rows[i][0], name) for i, name in enumerate(names)], np.int32)


def _tags(path: epath.Path, column: str, rows: Sequence[tuple[int, Row]]) -> tuple[Kind, np.ndarray]:
    tags = [list(filter(None, map(str.strip, _SEPARATORS.split(row[column])))) for _, row in rows]
    class_names = read_class_list(path.parent) or class_order(tag for row in tags for tag in row)
    labels = np.zeros((len(rows), len(class_names)), np.int8)
    for i, row in enumerate(tags):
        for tag in row:
            labels[i, _class(path, class_names, rows[i][0], tag)] = 1
    return Labels(class_names=class_names), labels


def _class(path: epath.Path, class_names: Sequence[str], line: int, name: str) -> int:
    if name not in class_names:
        raise ConfigError(f'{path}, line {line}: classes.txt has no class "{name}"; {near_misses(name, class_names)}')
    return class_names.index(name)


def _number(path: epath.Path, line: int, cell: str) -> float:
    if not cell.strip():
        return float("nan")
    try:
        return float(cell)
    except ValueError as error:
        raise ConfigError(f'{path}, line {line}: "{cell}" is no number; an empty cell says that it is not known') from error


def _sizes(path: epath.Path, rows: Sequence[tuple[int, Row]], files: Sequence[str], follow_outside: bool) -> np.ndarray:
    fence = Fence(path.parent, follow_outside=follow_outside)
    read: Callable[[str], int] = lambda file: size_of(fence.path_of(file))  # noqa: E731
    sizes = np.empty(len(files), np.int64)
    for i, file in enumerate(files):
        try:
            sizes[i] = read(file)
        except ConfigError as error:
            raise ConfigError(f"{path}, line {rows[i][0]}: {error}") from error
        except OSError as error:
            raise ConfigError(f'{path}, line {rows[i][0]}: "{file}" cannot be read: {error.strerror or error}') from error
    return sizes

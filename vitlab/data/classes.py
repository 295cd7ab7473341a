"""Class names of images in folders or lists, and the order of their labels."""

import collections
import re
from collections.abc import Iterable
from decimal import Decimal

from etils import epath

from vitlab.config import ConfigError

CLASS_LIST = "classes.txt"  # file beside the class folders or the CSV: one name per line, in label order
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in the order of their labels, which depends on the names alone.

    If all names are numbers ("2", "-1", "0.5"), they are ordered by value, and equal values ("1",
    "01", "1.0") by length and then by text. Otherwise names are ordered by their code points.
    """
    distinct = set(names)
    if all(map(_NUMBER.fullmatch, distinct)):
        return tuple(sorted(distinct, key=lambda name: (Decimal(name), len(name), name)))
    return tuple(sorted(distinct))


def read_class_list(folder: epath.Path) -> tuple[str, ...] | None:
    """The non-empty lines of classes.txt in a folder; None if there is no such file.

    Raises:
      ConfigError: A name occurs twice, there are fewer than two names, or the file is not UTF-8.
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
        raise ConfigError(f"{path} names {len(names) or 'no'} class{'' if len(names) == 1 else 'es'}; at least 2 are needed")
    return names


def different_classes(one: tuple[str, ...], other: tuple[str, ...], name: str, other_name: str) -> str:
    """Describes how two lists of classes differ, and the remedy if only their order differs.

    `name` and `other_name` say to what the lists belong.
    """
    if len(one) != len(other):
        return f"{name} has {len(one)}, {other_name} has {len(other)}"
    label = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    text = f'class {label} is "{one[label]}" in {name}, "{other[label]}" in {other_name}'
    if set(one) != set(other):
        return text
    return f"{text}: the same classes in another order; a file {CLASS_LIST} beside the images, one name per line, fixes it"

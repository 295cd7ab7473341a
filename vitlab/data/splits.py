"""Split names with an optional slice: "train", "train[:90%]", "test[100:200]", as in TFDS."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from vitlab.config import ConfigError

_SPLIT = re.compile(r"(?P<name>[^\[\]+]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def split_name(text: str) -> str:
    """The name without its slice.

    Raises:
      ConfigError: The text is not a name with at most one slice.
    """
    return _match(text)["name"]


def is_sliced(text: str) -> bool:
    """Whether the split has a slice."""
    return _match(text)["name"] != text


def split_range(text: str, num_examples: int, *, margin: int = 0) -> slice:
    """The indices out of `num_examples` that a slice selects.

    A percentage is rounded to the nearest example. A percentage between 0 and 100 leaves at least
    `margin` examples, but at most half of all, on either side.

    Raises:
      ConfigError: The text is malformed or the part is empty.
    """
    match = _match(text)

    def bound(value: str | None, default: int) -> int:
        if value is None:
            return default
        share = int(value.rstrip("%"))
        if not value.endswith("%"):
            return min(max(share + num_examples if share < 0 else share, 0), num_examples)
        share = min(max(share + 100 if share < 0 else share, 0), 100)
        number = round(share * num_examples / 100)
        return min(max(number, margin), num_examples - margin) if 0 < share < 100 else number

    part = slice(bound(match["start"], 0), bound(match["stop"], num_examples))
    if part.start >= part.stop:
        raise ConfigError(f'split "{text}" is empty: "{match["name"]}" has {num_examples} images')
    return part


def stratified(text: str, files: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Images that a slice selects out of `spread_order`, so that each part has all classes.

    Adjacent parts are disjoint and leave no image out. A bound in percent has an image of each
    class of at least two images on either side; a class of one image is on the larger side. A bound
    in images is exact.

    Args:
      text: The split.
      files: Paths; their order does not matter.
      labels: Integers [n], of the files.

    Returns:
      Sorted indices, int64 [k].

    Raises:
      ConfigError: The text is malformed or the part is empty.
    """
    return np.sort(spread_order(files, labels)[split_range(text, len(files), margin=margin_of(labels))])


def margin_of(labels: np.ndarray) -> int:
    """Number of classes of at least two images.

    As many images at either end of `spread_order` come from different classes.
    """
    _, counts = np.unique(labels, return_counts=True)
    return int((counts > 1).sum())


def spread_order(files: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """A fixed pseudo-random order of images in which every stretch has its share of every class.

    The images of a class are shuffled by a hash of their paths and spread evenly over the whole
    order (the method of Sainte-Lague). Each class of at least two images has one at the very
    beginning of the order and one at the very end.

    Args:
      files: Paths; their order does not matter.
      labels: Integers [n], of the files.

    Returns:
      Indices, int64 [n].
    """
    digests = (hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest() for path in files)
    hashes = np.array([int.from_bytes(digest) for digest in digests], np.uint64)
    by_class = np.lexsort((hashes, labels))
    _, counts = np.unique(labels, return_counts=True)
    sizes = np.repeat(counts, counts)
    ranks = np.arange(len(files)) - np.repeat(np.cumsum(counts) - counts, counts)
    turns = (ranks + 0.5) / sizes
    turns[(sizes > 1) & (ranks == 0)] = -1
    turns[(sizes > 1) & (ranks == sizes - 1)] = 2
    return by_class[np.lexsort((hashes[by_class], turns))]


def _match(text: str) -> re.Match[str]:
    match = _SPLIT.fullmatch(text)
    if not match:
        raise ConfigError(f'split "{text}" must be a name with an optional slice: "train", "train[:90%]", "test[100:200]"')
    return match

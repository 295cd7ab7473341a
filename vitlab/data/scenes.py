"""Synthetic scenes of bundled Fashion-MNIST items, with the fields of all dense tasks.

Each scene, 64 x 64 RGB, is a function of its split and index: one to six tinted items, from far to
near, over a smooth background, seen by two eyes. An item's disparity is a whole number of pixels
from 1 to 8, the background's is 0; near items are larger on average. No scene is stored.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Integer, UInt8

from vitlab.config import ConfigError, near_misses
from vitlab.data.bundled import CLASS_NAMES, open_bundled
from vitlab.data.fields import BOX_COLUMNS, Boxes, Image, IndexMap, Kind, Labels, Value, ValueMap, paired
from vitlab.data.splits import split_name, split_range

SIDE = 64  # pixels per side of a scene
LENGTHS = {"train": 20_000, "test": 1_000}  # number of scenes; items of "test" do not occur in "train"
_VERSION = 1  # version of the scenes' appearance, part of the fingerprint
_MOST_ITEMS = 6
_SIZES = (16, 37)  # least and largest side of an item, in pixels
_MOST_DISPARITY = 8  # pixels
_LEAST_VISIBLE = 12  # visible pixels from which an item counts and has a box
_NEAREST = 10.0  # depth of the background; disparity d has the depth _NEAREST / (1 + d)

FIELDS: Mapping[str, Kind] = {
    "image": Image(mirror="image2"),
    "image2": Image(mirror="image"),
    "segmentation": IndexMap(class_names=("background", *CLASS_NAMES)),
    "boxes": Boxes(count=_MOST_ITEMS, class_names=CLASS_NAMES),
    "count": Value(counts=True),
    "labels": Labels(class_names=CLASS_NAMES),
    "depth": ValueMap(),
    "disparity": ValueMap(scaling="width", mirror="disparity2"),
    "disparity2": ValueMap(scaling="width", mirror="disparity"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSource:
    """Some scenes of a split, with the fields `names` out of `FIELDS`."""

    split: str
    start: int
    stop: int
    names: tuple[str, ...]

    class_names = CLASS_NAMES
    channels = 3

    @property
    def fields(self) -> dict[str, Kind]:
        """Kinds of the fields `names`; a flip exchanges the two eyes' fields if both exist."""
        return paired({name: FIELDS[name] for name in self.names})

    @property
    def fingerprint(self) -> str:
        """Hash of the version, the split and the names of the fields."""
        what = (_VERSION, self.split, self.start, self.stop, self.names)
        return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} must be in [0, {len(self)})")
        return scene(self.split, self.start + index).example(self.names)

    def name_of(self, index: int) -> str:
        """Split and index of a scene: "train/17"."""
        return f"{self.split}/{self.start + index}"


def open_scenes(split: str, names: Sequence[str]) -> ScenesSource:
    """Opens "train" (20,000 scenes) or "test" (1,000), or a slice of them.

    Args:
      split: The split.
      names: Fields of each scene, out of `FIELDS`.

    Raises:
      ConfigError: There is no such split, or the slice is empty.
    """
    name = split_name(split)
    if name not in LENGTHS:
        raise ConfigError(f'the scenes have no split "{name}"; {near_misses(name, LENGTHS)}')
    part = split_range(split, LENGTHS[name])
    return ScenesSource(split=name, start=part.start, stop=part.stop, names=tuple(names))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The items of a scene, from far to near."""

    background: UInt8[np.ndarray, "64 64 3"]
    pixels: list[UInt8[np.ndarray, "_h _w 3"]]  # pixels of each item
    masks: list[Bool[np.ndarray, "_h _w"]]
    corners: Integer[np.ndarray, "items 2"]  # top and left in the left eye's view, possibly outside
    labels: Integer[np.ndarray, " items"]
    disparities: Integer[np.ndarray, " items"]  # in pixels, ascending

    @functools.cached_property
    def owner(self) -> Integer[np.ndarray, "64 64"]:
        """Index of the visible item at each pixel of the left eye's view; -1 for the background."""
        return self._painted(np.full((SIDE, SIDE), -1, np.int8), np.arange(len(self.labels)), shift=False)

    @functools.cached_property
    def visible(self) -> Integer[np.ndarray, " items"]:
        """Number of pixels of each item that are visible to the left eye."""
        return np.bincount(self.owner.ravel() + 1, minlength=len(self.labels) + 1)[1:]

    def _painted(self, canvas: np.ndarray, values: Sequence[Any] | np.ndarray, *, shift: bool) -> np.ndarray:
        """Paints a value for each item on the canvas; with `shift` in the right eye's view."""
        for mask, (top, left), disparity, value in zip(self.masks, self.corners.tolist(), self.disparities.tolist(), values, strict=True):
            left -= disparity * shift
            y, x = max(-top, 0), max(-left, 0)
            inside = mask[y : SIDE - top, x : SIDE - left]
            part = canvas[top + y : top + y + inside.shape[0], left + x : left + x + inside.shape[1]]
            np.copyto(part, value[y:, x:][: inside.shape[0], : inside.shape[1]] if np.ndim(value) else value, where=_like(inside, part))
        return canvas

    def _of_owner(self, background: Any, values: np.ndarray) -> np.ndarray:
        """A map of the values of the items visible to the left eye, over `background`."""
        return np.concatenate(([background], values))[self.owner + 1]

    def _disparity(self, *, shift: bool) -> Float32[np.ndarray, "64 64"]:
        if not shift:
            return self._of_owner(0, self.disparities).astype(np.float32)
        return self._painted(np.zeros((SIDE, SIDE), np.float32), self.disparities, shift=True)

    def _boxes(self) -> Float32[np.ndarray, "boxes 7"]:
        rows = []
        for number in np.flatnonzero(self.visible >= _LEAST_VISIBLE).tolist():
            own = self.owner == number
            y, x = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            rows.append((x[0], y[0], x[-1] + 1, y[-1] + 1, self.labels[number], 0, self.visible[number]))
        return np.array(rows, np.float32).reshape(-1, len(BOX_COLUMNS))

    def _presence(self) -> np.ndarray:
        present = np.zeros(len(CLASS_NAMES), np.int8)
        present[self.labels[self.visible >= _LEAST_VISIBLE]] = 1
        return present

    def example(self, names: Sequence[str]) -> dict[str, Any]:
        """The fields `names` of the scene."""
        make = {
            "image": lambda: self._painted(self.background.copy(), self.pixels, shift=False),
            "image2": lambda: self._painted(self.background.copy(), self.pixels, shift=True),
            "segmentation": lambda: self._of_owner(0, self.labels + 1).astype(np.uint8),
            "boxes": self._boxes,
            "count": lambda: int((self.visible >= _LEAST_VISIBLE).sum()),
            "labels": self._presence,
            "depth": lambda: self._of_owner(_NEAREST, _NEAREST / (1 + self.disparities)).astype(np.float32),
            "disparity": lambda: self._disparity(shift=False),
            "disparity2": lambda: self._disparity(shift=True),
        }
        return {name: make[name]() for name in names}


def scene(split: str, index: int) -> Scene:
    """The scene of a split at an index of at least 0."""
    images, labels, silhouettes = _items(split)
    rng = np.random.Generator(np.random.Philox(key=(index, list(LENGTHS).index(split))))
    count = int(rng.integers(1, _MOST_ITEMS + 1))
    chosen = rng.integers(len(images), size=count)
    disparities = np.sort(rng.integers(1, _MOST_DISPARITY + 1, size=count))
    nearness = 0.6 * (disparities - 1) / (_MOST_DISPARITY - 1) + 0.4 * rng.random(count)
    sizes = (_SIZES[0] + (_SIZES[1] - _SIZES[0]) * nearness).round().astype(int)
    corners = np.stack([rng.integers(-sizes // 6, SIDE - sizes + sizes // 6 + 1) for _ in range(2)], 1)
    tints = rng.uniform(0.45, 1.0, (count, 3))
    noise = rng.integers(40, 200, (5, 5, 3)).astype(np.uint8)
    pixels, masks = [], []
    for number, size, tint in zip(chosen.tolist(), sizes.tolist(), tints, strict=True):
        grey = cv2.resize(images[number], (size, size), interpolation=cv2.INTER_AREA if size < 28 else cv2.INTER_LINEAR)
        masks.append(cv2.resize(silhouettes[number], (size, size), interpolation=cv2.INTER_LINEAR) > 127)
        pixels.append((grey[..., None] * tint).astype(np.uint8))
    return Scene(
        background=cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC),
        pixels=pixels,
        masks=masks,
        corners=corners,
        labels=labels[chosen].astype(np.int64),
        disparities=disparities,
    )


@functools.cache
def _items(split: str) -> tuple[UInt8[np.ndarray, "n 28 28"], Integer[np.ndarray, " n"], UInt8[np.ndarray, "n 28 28"]]:
    """Pixels, classes and silhouettes (0 or 255) of the items of a split."""
    source = open_bundled(split)
    images = np.ascontiguousarray(source.images[..., 0])
    return images, source.labels, np.stack([_silhouette(image) for image in images])


def _silhouette(image: UInt8[np.ndarray, "28 28"]) -> UInt8[np.ndarray, "28 28"]:
    """The silhouette of an item, filled within its outer contours."""
    contours, _ = cv2.findContours((image > 8).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros((28, 28), np.uint8), contours, -1, 255, cv2.FILLED)


def _like(mask: np.ndarray, part: np.ndarray) -> np.ndarray:
    return mask if part.ndim == 2 else mask[..., None]

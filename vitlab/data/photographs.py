"""Forty bundled pieces of photographs, for image restoration; see bundled/ORIGIN.md."""

import dataclasses
import functools
import hashlib
import importlib.resources
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitlab.config import ConfigError, near_misses
from vitlab.data.decode import decode
from vitlab.data.fields import Image, Kind
from vitlab.data.splits import split_name, split_range

FIELDS: dict[str, Kind] = {"image": Image()}
_SPLITS = ("train", "test")
_TILE = 64  # pixels on a side of an image of "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotographsSource:
    """Some photographs of a split, decoded on first access."""

    split: str
    start: int
    stop: int

    class_names = ()
    channels = 3
    fields = FIELDS

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels."""
        pixels = _photographs(self.split)[self.start : self.stop]
        return hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} must be in [0, {len(self)})")
        return {"image": _photographs(self.split)[self.start + index]}

    def name_of(self, index: int) -> str:
        """Split and index of an image: "train/17"."""
        return f"{self.split}/{self.start + index}"


def open_photographs(split: str) -> PhotographsSource:
    """Opens "train" (30 images of 256 x 256 pixels) or "test" (160 of 64 x 64), or a slice.

    The images of "test" are parts of other photographs than those of "train".

    Raises:
      ConfigError: There is no such split, or the slice is empty.
    """
    name = split_name(split)
    if name not in _SPLITS:
        raise ConfigError(f'the photographs have no split "{name}"; {near_misses(name, _SPLITS)}')
    part = split_range(split, len(_photographs(name)))
    return PhotographsSource(split=name, start=part.start, stop=part.stop)


@functools.cache
def _photographs(split: str) -> UInt8[np.ndarray, "n h w 3"]:
    file = importlib.resources.files("vitlab").joinpath("data", "bundled", "photographs.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        pixels = np.stack([decode(arrays[name].tobytes(), 3) for name in sorted(arrays) if name.startswith(split)])
    if split == "train":
        return pixels
    n, side = len(pixels), pixels.shape[1] // _TILE
    tiles = pixels.reshape(n, side, _TILE, side, _TILE, 3).swapaxes(2, 3)
    return tiles.reshape(n * side * side, _TILE, _TILE, 3)

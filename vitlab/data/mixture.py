"""Several sources mixed into one by weights."""

import bisect
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.config import ConfigError
from vitlab.data.classes import different_classes
from vitlab.data.fields import Kind, fields_of
from vitlab.data.order import MixedOrder


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MixedSource:
    """The images of several sources, `parts`, one source after the other.

    The length is the total number of images, and one epoch in a duration: "90 epochs" draws 90
    times as many images. A source whose weight exceeds its share of images is repeated more often
    than 90 times. The weights only affect `order`, the order of training images.
    """

    parts: tuple[Any, ...]  # at least two sources with the same classes and channels, see `mixture`
    weights: tuple[int, ...]  # sampling weight of each part, at least 1
    class_names: tuple[str, ...]
    channels: int

    @property
    def fields(self) -> Mapping[str, Kind]:
        """Kinds of the fields, which all parts share."""
        return fields_of(self.parts[0])

    @property
    def fingerprint(self) -> str:
        """Hash of the fingerprints and weights of the parts."""
        what = [(part.fingerprint, weight) for part, weight in zip(self.parts, self.weights, strict=True)]
        return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, within = self._locate(index)
        return self.parts[part][within]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`; a part that can read several at once does.

        Raises OSError if an example cannot be read.
        """
        places = [self._locate(index) for index in indices]
        examples: dict[tuple[int, int], dict[str, Any]] = {}
        for number, part in enumerate(self.parts):
            wanted = [within for other, within in places if other == number]
            read = getattr(part, "__getitems__", None) or (lambda wanted, part=part: [part[i] for i in wanted])
            if wanted:
                examples |= zip([(number, within) for within in wanted], read(wanted), strict=True)
        return [examples[place] for place in places]

    def name_of(self, index: int) -> str:
        """Name of the image in its part."""
        part, within = self._locate(index)
        return self.parts[part].name_of(within)

    def order(self, seed: int, *, repeats: int = 1) -> MixedOrder:
        """The order of training, a function of the seed and the position."""
        return MixedOrder([len(part) for part in self.parts], self.weights, seed, repeats=repeats)

    def _locate(self, index: int) -> tuple[int, int]:
        """Index of the part, and index within the part."""
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} must be in [0, {len(self)})")
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


def mixture(parts: Sequence[Any], weights: Sequence[int], names: Sequence[str]) -> MixedSource:
    """Mixes sources into one.

    Args:
      parts: Sources, at least one.
      weights: Sampling weight of each source, at least 1: of sum(weights) consecutive images this
        many come from the source.
      names: Names of the sources in errors.

    Raises:
      ConfigError: Two sources differ in their fields, their channels, or their classes or the order
        of these.
    """
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        if part.class_names != first.class_names:
            raise ConfigError(
                f"sources to mix need the same classes: {different_classes(first.class_names, part.class_names, names[0], name)}"
            )
        if part.channels != first.channels:
            raise ConfigError(
                f"sources to mix need the same channels: {names[0]} has {first.channels}, {name} has {part.channels} (1 is grey, 3 RGB)"
            )
        if fields_of(part) != fields_of(first):
            raise ConfigError(f"sources to mix need the same fields of the same kinds: {names[0]} and {name} have others")
    return MixedSource(parts=tuple(parts), weights=tuple(weights), class_names=first.class_names, channels=first.channels)

"""NATTEN's rule for the keys that a query sees along one axis, as numbers that are known when a
program is traced.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the map; queries and keys meet inside a residue class modulo the dilation."""

    size: int  # tokens
    kernel: int  # keys that a query sees
    dilation: int = 1
    stride: int = 1  # queries that share the window of one of them, their leader
    causal: bool = False  # no key after the query

    @property
    def positions(self) -> int:
        """Tokens of the longest residue class."""
        return -(-self.size // self.dilation)

    def class_sizes(self) -> np.ndarray:
        """Tokens of each residue class, [dilation]."""
        return -(-(self.size - np.arange(self.dilation)) // self.dilation)

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """First key, and one past the last, of each position of each residue class, [dilation,
        positions] each.

        A window at the border is shifted inside, so that every query sees `kernel` keys; a causal
        one is cut off. Positions beyond the end of a class have the window of its last token.
        """
        size = self.class_sizes()[:, None]
        position = np.minimum(np.arange(self.positions)[None], size - 1)
        group = position // self.stride * self.stride
        if self.causal:
            leader = np.minimum(group + self.stride - 1, size - 1)
            return np.maximum(leader - self.kernel + 1, 0), position + 1
        leader = np.minimum(group + self.stride // 2, size - 1)
        start = np.clip(leader - self.kernel // 2, 0, size - self.kernel)
        return start, start + self.kernel

    def inverse_windows(self) -> tuple[np.ndarray, np.ndarray]:
        """First query that sees each key, and one past the last: windows are monotone, so that no
        other sees it.
        """
        keys = np.arange(self.positions)
        start, stop = (
            np.array([np.minimum(np.searchsorted(x, keys, "right"), size) for x, size in zip(bounds, self.class_sizes(), strict=True)])
            for bounds in reversed(self.windows())
        )
        return start, stop

    def mask(self) -> np.ndarray:
        """Whether a query sees a key, bool [query, key], both of `size`."""
        start, stop = self.windows()
        token = np.arange(self.size)
        residue, position = token % self.dilation, token // self.dilation
        first, last = start[residue, position][:, None], stop[residue, position][:, None]
        return (residue[:, None] == residue) & (position >= first) & (position < last)

    def offsets(self) -> np.ndarray:
        """Index of a pair's bias in its table, key - query + kernel - 1 in positions, int [query,
        key]; clipped where masked.
        """
        position = np.arange(self.size) // self.dilation
        return np.clip(position - position[:, None] + self.kernel - 1, 0, 2 * self.kernel - 2)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The positions of an axis cut into tiles of queries, each with the keys around it."""

    axis: Axis

    @property
    def size(self) -> int:
        """Queries per tile: all of a short axis.

        Else about the kernel, so that a tile sees about twice as many keys.
        """
        positions, kernel = self.axis.positions, self.axis.kernel
        return positions if positions <= 2 * kernel else -(-positions // max(1, round(positions / kernel)))

    @property
    def count(self) -> int:
        return -(-self.axis.positions // self.size)

    @functools.cached_property
    def _windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows of the queries of each tile, [dilation, count, size].

        Queries beyond the end repeat the last.
        """
        padding = ((0, 0), (0, self.count * self.size - self.axis.positions))
        return tuple(np.pad(x, padding, "edge").reshape(-1, self.count, self.size) for x in self.axis.windows())  # type: ignore[return-value]

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """Positions of the keys that the queries of each tile see, int [count, keys].

        Beyond the end the last repeats.
        """
        start, stop = self._windows
        first = start.min((0, 2))
        width = int((stop.max((0, 2)) - first).max())
        return np.minimum(first[:, None] + np.arange(width), self.axis.positions - 1)

    def places(self) -> np.ndarray:
        """Indices of each position in the flattened `keys`, int [times, positions].

        A position that occurs less often points past the end.

        A repetition beyond the end of the axis does not count.
        """
        tile, key = np.nonzero(self.keys == self._windows[0].min((0, 2))[:, None] + np.arange(self.keys.shape[1]))
        found = [[] for _ in range(self.axis.positions)]
        for place, position in zip(tile * self.keys.shape[1] + key, self.keys[tile, key], strict=True):
            found[position].append(place)
        times = max(map(len, found))
        return np.array([places + [self.keys.size] * (times - len(places)) for places in found]).T

    def seen(self) -> np.ndarray:
        """Whether a query of a tile sees a key of the tile, bool [dilation, count, size, keys]."""
        start, stop = (x[..., None] for x in self._windows)
        first = self._windows[0].min((0, 2))
        keys = (first[:, None] + np.arange(self.keys.shape[1]))[None, :, None]
        return (keys >= start) & (keys < stop)

    def offset(self) -> np.ndarray:
        """One-hot place of the bias, float32 [count, size, keys, 2 kernel - 1]."""
        query = np.arange(self.count * self.size).reshape(self.count, self.size, 1)
        place = self.keys[:, None] - query + self.axis.kernel - 1
        return (place[..., None] == np.arange(2 * self.axis.kernel - 1)).astype(np.float32)

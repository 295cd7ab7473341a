"""Orders in which the positions of a map are read (MHS-VM, Ji, arXiv:2406.05992, section 3.1)."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

Positions = list[tuple[int, int]]  # rows and columns


def _snake(h: int, w: int) -> tuple[Positions, Positions]:
    """Rows, every second one backwards; and columns so."""
    rows = [(i, j) for i in range(h) for j in (range(w) if i % 2 == 0 else reversed(range(w)))]
    columns = [(i, j) for j in range(w) for i in (range(h) if j % 2 == 0 else reversed(range(h)))]
    return rows, columns


def _diagonal(h: int, w: int) -> tuple[Positions, Positions]:
    """Anti-diagonals, up and down in turn; and those of the map mirrored left to right."""
    order = []
    for k in range(h + w - 1):
        line = [(i, k - i) for i in range(max(0, k - w + 1), min(h, k + 1))]
        order += line if k % 2 else line[::-1]
    return order, [(i, w - 1 - j) for i, j in order]


def _spiral(h: int, w: int) -> tuple[Positions, Positions]:
    """Clockwise from the first position inwards; and that of the map mirrored top to bottom."""
    order, top, left, bottom, right = [], 0, 0, h - 1, w - 1
    while top <= bottom and left <= right:
        order += [(top, j) for j in range(left, right + 1)] + [(i, right) for i in range(top + 1, bottom + 1)]
        if top < bottom and left < right:
            order += [(bottom, j) for j in range(right - 1, left - 1, -1)] + [(i, left) for i in range(bottom - 1, top, -1)]
        top, left, bottom, right = top + 1, left + 1, bottom - 1, right - 1
    return order, [(h - 1 - i, j) for i, j in order]


def _raster(h: int, w: int) -> tuple[Positions, Positions]:
    """Rows; and columns."""
    return [(i, j) for i in range(h) for j in range(w)], [(i, j) for j in range(w) for i in range(h)]


ORDERS: Mapping[str, Callable[[int, int], tuple[Positions, Positions]]] = {
    "snake": _snake,
    "diagonal": _diagonal,
    "spiral": _spiral,
    "raster": _raster,
}


@functools.lru_cache(maxsize=64)
def scan_order(name: str, h: int, w: int) -> np.ndarray:
    """Returns the indices [4, h * w] of the positions in the order of reading.

    They are those of the two orders of the name, a key of ORDERS, each followed by its reverse.
    """
    first, second = (np.asarray([i * w + j for i, j in order], np.int32) for order in ORDERS[name](h, w))
    return np.stack((first, first[::-1], second, second[::-1]))

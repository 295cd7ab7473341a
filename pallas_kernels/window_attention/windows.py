"""Geometry of windows: the token of the map in each slot of each window, and the slots that a slot
may see.
"""

import dataclasses
import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.logits import NO_KEY

Index = TypeVar("Index", int, np.ndarray, jax.Array)

SHIFT_PENALTY = -100.0  # summand of Swin's code for the logits of tokens that were no neighbours before the shift


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the map cut into windows; the last window may overhang the map."""

    size: int  # tokens
    window: int  # tokens per window
    shift: int = 0  # tokens; the windows start here and the last one wraps around
    grid: bool = False  # a window takes every num_windows-th token (MaxViT) instead of neighbours

    @property
    def num_windows(self) -> int:
        return -(-self.size // self.window)

    @property
    def padded(self) -> int:
        return self.num_windows * self.window

    def position(self, window: Index, slot: Index) -> Index:
        """The token at a slot of a window; positions of at least `size` are padding."""
        if self.grid:
            return slot * self.num_windows + window
        return (window * self.window + slot + self.shift) % self.padded

    def order(self) -> np.ndarray:
        """The tokens of all windows one after the other, [padded]."""
        window, slot = np.divmod(np.arange(self.padded), self.window)
        return self.position(window, slot)

    def inverse_order(self) -> np.ndarray:
        """Index of each token in `order`, [size]."""
        window, slot = self.locate(np.arange(self.size))
        return window * self.window + slot

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The window and the slot that hold a token: the inverse of `position`."""
        if self.grid:
            return position % self.num_windows, position // self.num_windows
        return np.divmod((position - self.shift) % self.padded, self.window)

    def wrapped(self, position: Index) -> Index:
        """Whether the shift carried the token around to the other end."""
        return position < self.shift


@dataclasses.dataclass(frozen=True)
class Windows:
    """Both axes of a map cut into windows."""

    rows: Axis
    cols: Axis

    @classmethod
    def of(cls, size: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int], grid: bool) -> "Windows":
        return cls(*(Axis(*axis, grid) for axis in zip(size, window_size, shift, strict=True)))

    @property
    def num_slots(self) -> int:
        """Tokens per window."""
        return self.rows.window * self.cols.window

    @property
    def num_windows(self) -> int:
        return self.rows.num_windows * self.cols.num_windows

    @property
    def shift(self) -> tuple[int, int]:
        return self.rows.shift, self.cols.shift

    @property
    def overhang(self) -> bool:
        return (self.rows.padded, self.cols.padded) != (self.rows.size, self.cols.size)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of every slot of every window, [num_windows, num_slots] each."""
        axes = (self.rows.num_windows, self.cols.num_windows, self.rows.window, self.cols.window)
        row_window, col_window, row_slot, col_slot = np.indices(axes).reshape(4, self.num_windows, self.num_slots)
        return self.rows.position(row_window, row_slot), self.cols.position(col_window, col_slot)

    def offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Summands of the logits that depend on position alone, [kinds, query, key], and each
        window's kind.

        Tokens on two sides of the seam that the shift made lose 100; padding is hidden from all.
        """
        row, col = self.positions()
        side = 2 * self.rows.wrapped(row) + self.cols.wrapped(col)
        is_token = (row < self.rows.size) & (col < self.cols.size)
        kinds, kind = np.unique(np.where(is_token, side, -1), axis=0, return_inverse=True)
        offset = np.where(kinds[:, :, None] == kinds[:, None, :], 0.0, SHIFT_PENALTY)
        return np.where(kinds[:, None, :] < 0, NO_KEY, offset).astype(np.float32), kind.reshape(-1)


@functools.partial(jax.jit, static_argnames="window_size")  # counts.py knows it by name: no part of a model's products
def expand_bias(table: Float[Array, "heads rows cols"], window_size: tuple[int, int]) -> Float[Array, "heads slots slots"]:
    """The bias of each pair of slots from the table of relative positions, query - key + window -
    1.

    Two small products with zeros and ones: exact, and their gradient is a plain sum in a fixed
    order.
    """
    rows, cols = (jnp.asarray(_distances(n), table.dtype) for n in window_size)
    bias = jnp.einsum("hrc,qkr,xyc->hqxky", table, rows, cols, precision="highest")
    num_slots = math.prod(window_size)
    return bias.reshape(table.shape[0], num_slots, num_slots)


def _distances(n: int) -> np.ndarray:
    """Ones at [query, key, query - key + n - 1]."""
    at = np.arange(n)
    return (at[:, None] - at[None, :] + n - 1)[..., None] == np.arange(2 * n - 1)

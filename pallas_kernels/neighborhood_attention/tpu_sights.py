"""Visibility in the TPU kernels: a table for each kind of tile, added to the logits, or ranges of
keys for each query.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.logits import LOG2E, NO_KEY
from pallas_kernels.neighborhood_attention.tiles import TpuPlan


def table_of(bias, plan: TpuPlan) -> Float[Array, "chunks kinds *logits"]:
    """Summands of the logits for each kind of tile, in units of log 2.

    Without a bias one table serves all chunks of heads.
    """
    seen = np.ones((1, 1, 1), bool)
    for tile in plan.tiles:
        seen = np.einsum("aqk,bxy->abqxky", seen, tile.seen)
        seen = seen.reshape(seen.shape[0] * seen.shape[1], seen.shape[2] * seen.shape[3], -1)
    mask = np.where(seen, 0.0, NO_KEY).astype(np.float32)
    if bias is None:
        table = jnp.tile(jnp.asarray(mask)[None], (1, 1, plan.pack, 1))
        return table.swapaxes(2, 3) if plan.backward else table
    for tile in plan.tiles:  # the first axis of offsets becomes kinds, queries and keys, the last ones
        at = (tile.offsets[..., None] == np.arange(bias.shape[1])).astype(np.float32)
        bias = jnp.einsum("ho...,aqko->h...aqk", bias, at, precision="highest")
    bias = bias.transpose(0, 1, 4, 7, 2, 5, 8, 3, 6, 9).reshape(plan.chunks, 1, -1, *mask.shape)
    bias = jnp.broadcast_to(bias, (plan.chunks, plan.fold, *bias.shape[2:])).reshape(plan.chunks, plan.pack, *mask.shape)
    table = (bias * LOG2E + mask).swapaxes(1, 2).reshape(plan.chunks, len(mask), -1, plan.keys)
    return table.swapaxes(2, 3) if plan.backward else table


class Ranges(NamedTuple):
    """Ranges of keys that the queries of each kind of tile see, from first to last along each axis.

    The places along the axes are fields of one number, with a guard bit above each, so that one
    subtraction compares all.
    """

    first: Array  # first key of each query, [kinds, rows, 1], or [kinds, 1, rows] in the backward pass
    last: Array  # last key, in the shape of `first`, plus the guard twice
    place: Array  # place of each key, plus the guard, [1, keys] or [keys, rows]

    @classmethod
    def of(cls, plan: TpuPlan) -> "Ranges":
        """The ranges of a plan."""
        first, last, place = np.zeros((1, 1), np.int32), np.full((1, 1), 2 * _guard(plan)), np.full(1, _guard(plan))
        for tile, shift in zip(plan.tiles, _shifts(plan), strict=True):
            first, last = (
                (x[:, None, :, None] + (y << shift)[None, :, None]).reshape(len(x) * len(y), -1)
                for x, y in zip((first, last), tile.ranges, strict=True)
            )
            place = (place[:, None] + (np.arange(tile.width) << shift)).reshape(-1)
        first, last = (np.tile(x, plan.pack)[..., None] for x in (first, last))
        if plan.backward:
            first, last, place = first.swapaxes(1, 2), last.swapaxes(1, 2), np.broadcast_to(place[:, None], plan.logits)
        return cls(*(jnp.asarray(x, jnp.int32) for x in (first, last, np.atleast_2d(place))))


def _shifts(plan: TpuPlan) -> list[int]:
    """First bit of each axis's field."""
    bits = [tile.width.bit_length() + 1 for tile in plan.tiles]
    return [0, *itertools.accumulate(bits)][:-1]


def _guard(plan: TpuPlan) -> int:
    """A bit above each field."""
    return sum(1 << shift + tile.width.bit_length() for tile, shift in zip(plan.tiles, _shifts(plan), strict=True))


def masked(logits, plan: TpuPlan, kind: Array, sights: Sequence[Any]):
    """Logits with the bias added, and NO_KEY where a key is not seen."""
    if plan.tabled:
        return logits + sights[0][0, kind]
    ranges, guard = Ranges(*sights), _guard(plan)
    place = ranges.place[...]
    inside = (place - ranges.first[kind]) & (ranges.last[kind] - place) & guard
    return jnp.where(inside == guard, logits, NO_KEY)

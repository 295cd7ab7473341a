"""Checks of whether a head can read the maps of a trunk; a reason of None means that it can."""

import itertools
from collections.abc import Sequence

from jaxtyping import Array, Float, Shaped

Maps = tuple[Float[Array, "b _h _w _c"], ...]  # maps of a trunk, from fine to coarse
# Image pixels between neighbouring positions of each map. Fractions occur: a pyramid made for
# patches of 14 pixels has strides of 3.5 and 7.
Strides = Sequence[int | float]


def map_size(x: Shaped[Array, "b h w c"]) -> tuple[int, int]:
    """Returns rows and columns of a map."""
    return x.shape[1], x.shape[2]


def order_reason(strides: Strides) -> str | None:
    """Returns why the maps are not listed from fine to coarse, or None."""
    if not strides:
        return "strides=() must name at least one map"
    if any(a > b for a, b in itertools.pairwise(strides)):
        return f"strides={tuple(strides)} must not fall: maps are listed from fine to coarse"
    return None


def pyramid_reason(strides: Strides) -> str | None:
    """Returns why the maps are no pyramid, or None.

    A pyramid has at least two maps, each with twice the stride of the map before.
    """
    if len(strides) < 2:
        return f"strides={tuple(strides)} must name at least two maps"
    if any(b != 2 * a for a, b in itertools.pairwise(strides)):
        return f"strides={tuple(strides)} must double from each map to the next"
    return None


def plain_reason(strides: Strides) -> str | None:
    """Returns why the maps are not those of a trunk without stages, all of one stride, or None."""
    if len(set(strides)) != 1:
        return f"strides={tuple(strides)} must be equal, as those of a trunk without stages are"
    return None


def check_maps(dims: Sequence[int], strides: Strides, reason: str | None) -> None:
    """Refuses maps that a head cannot read.

    Raises:
      ValueError: `reason` is not None, or widths and strides differ in number.
    """
    if len(dims) != len(strides):
        raise ValueError(f"dims={tuple(dims)} and strides={tuple(strides)} must have one entry a map")
    if reason is not None:
        raise ValueError(reason)

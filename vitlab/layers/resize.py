"""Resizing as by torch's interpolate: unlike `jax.image.resize`, not antialiased."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75  # parameter of torch's cubic; `jax.image.resize` has -0.5
Taps = list[tuple[np.ndarray, np.ndarray]]  # for each tap: old position [new] and its weight [new]


def bicubic_taps(size: int, new_size: int, *, scale: float | None = None) -> Taps:
    """Four taps around the half-pixel centre, the border repeated; `scale` is new pixels per old
    one, None the sizes' ratio.
    """
    source = (np.arange(new_size) + 0.5) * (size / new_size if scale is None else 1 / scale) - 0.5
    first = np.floor(source).astype(int)
    taps = []
    for tap in (-1, 0, 1, 2):
        x = np.abs(source - first - tap)
        near, far = ((_A + 2) * x - (_A + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * _A
        taps.append((np.clip(first + tap, 0, size - 1), np.where(x <= 1, near, np.where(x < 2, far, 0))))
    return taps


def bilinear_taps(size: int, new_size: int, *, align_corners: bool = False) -> Taps:
    """Returns two taps, at half-pixel centres.

    With `align_corners`, the first and last pixels of both sizes coincide instead.
    """
    if align_corners:
        source = np.arange(new_size) * (size - 1) / max(1, new_size - 1)
    else:
        source = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, None)
    first = np.floor(source).astype(int)
    share = source - first
    return [(np.clip(first, 0, size - 1), 1 - share), (np.clip(first + 1, 0, size - 1), share)]


def resize_bicubic(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, scales: tuple[float | None, float | None] = (None, None)
) -> Float[Array, "b h2 w2 c"]:
    """Bicubic, not antialiased; `scales` are those of `bicubic_taps`."""
    for axis, (new, scale) in enumerate(zip(size, scales, strict=True), 1):
        x = _apply(x, axis, bicubic_taps(x.shape[axis], new, scale=scale))
    return x


def resize_bilinear(x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool = False) -> Float[Array, "b h2 w2 c"]:
    """Resizes by bilinear interpolation, not antialiased."""
    return resize_axis(resize_axis(x, 1, size[0], align_corners=align_corners), 2, size[1], align_corners=align_corners)


def resize_axis(x: Float[Array, "..."], axis: int, size: int, *, align_corners: bool = False) -> Float[Array, "..."]:
    """Resizes one axis by linear interpolation, not antialiased."""
    return x if x.shape[axis] == size else _apply(x, axis, bilinear_taps(x.shape[axis], size, align_corners=align_corners))


def resize_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Resizes by torch's "nearest": new pixel i is old pixel floor(i old_size / new_size)."""
    rows, cols = (np.arange(new) * old // new for old, new in zip((x.shape[1], x.shape[2]), size, strict=True))
    return jnp.take(jnp.take(x, rows, 1), cols, 2)


def _apply(x: Array, axis: int, taps: Taps) -> Array:
    shape = [1] * x.ndim
    shape[axis] = -1
    return sum(jnp.take(x, position, axis) * jnp.asarray(weight, x.dtype).reshape(shape) for position, weight in taps)  # type: ignore[return-value]

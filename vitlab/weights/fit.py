"""Converts a checkpoint's tensor to a parameter: its axes, type, and grid of positions."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.layers.pos_embed import RESIZE_WORDS, PosResize, resample
from vitlab.layers.resize import resize_axis
from vitlab.mixers.spectral import resample_filter
from vitlab.weights.reading import is_floating

Shape = tuple[int, ...]
Grid = tuple[int, int]


def fit(
    name: str,
    value: np.ndarray,
    shape: Shape,
    *,
    grid: Grid | None = None,
    declared: Grid | None = None,
    resize: PosResize = "antialias",
) -> tuple[jax.Array, str]:
    """Converts a foreign tensor, in torch's layout, to a parameter.

    Args:
      name: The parameter's name; the last part determines its kind.
      value: The foreign tensor.
      shape: The parameter's shape.
      grid: Rows and columns of the model's position embedding; None for other parameters.
      declared: Rows and columns of the tensor's own positions, if the checkpoint states them.
        Otherwise the positions are taken for a square, as in published checkpoints, or for the
        model's grid if their number is no square.
      resize: How a position embedding is resampled to the model's grid.

    Returns:
      The parameter, float32 [*shape], and the rule by which it was resampled, or "".

    Raises:
      ValueError: The tensor cannot be that parameter; the message is the reason.
    """
    if not is_floating(value):
        raise ValueError(f"numbers of type {value.dtype}; weights are real floating-point numbers")
    leaf, found = name.rpartition(".")[2], value.shape
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, which the report names
        value = np.asarray(value, np.float32)
    if leaf == "kernel":
        value = _to_flax_layout(value, shape)
    if leaf == "pos_map" or grid is not None:
        resize = "bilinear" if leaf in ("pos_map", "pos_tokens") else resize
        return _fit_positions(value, shape, (shape[1], shape[2]) if grid is None else grid, declared, resize)
    if leaf == "rel_pos_bias" and value.ndim == 2:
        value = _offsets_of(value, shape)
    if value.shape == shape:
        return jax.device_put(value, may_alias=False), ""  # a copy, for the array may be a view of a file
    if leaf in _TABLES and value.ndim == len(shape) and 0 not in value.shape:
        resized, rule = _TABLES[leaf](jnp.asarray(value), shape)
        if resized.shape == shape:
            return resized, f"{_size(value.shape)} to {_size(shape)}, {rule}"
    if [n for n in value.shape if n != 1] == [n for n in shape if n != 1]:  # such as a layer scale (1, c, 1, 1)
        return jax.device_put(value.reshape(shape), may_alias=False), ""
    raise ValueError(f"checkpoint {found}, model {shape}")


def to_torch_layout(name: str, value: np.ndarray) -> np.ndarray:
    """Converts a parameter to torch's layout of axes, the inverse of `fit`."""
    leaf = name.rpartition(".")[2]
    if leaf == "kernel":
        return np.moveaxis(value, (-1, -2), (0, 1))
    return value.reshape(1, -1, value.shape[-1]) if leaf == "pos_map" else value


def _to_flax_layout(value: np.ndarray, shape: Shape) -> np.ndarray:
    """Converts (out, in, *window) of torch to (*window, in, out) of Flax.

    A 1 x 1 convolution and a linear map are the same parameter.
    """
    if value.ndim < 2:
        return value
    value = np.moveaxis(value, (0, 1), (-1, -2))
    windows = (value.shape[:-2], shape[:-2])
    return value.reshape(shape) if value.shape[-2:] == shape[-2:] and all(n == 1 for w in windows for n in w) else value


def _fit_positions(value: np.ndarray, shape: Shape, new: Grid, declared: Grid | None, resize: PosResize) -> tuple[jax.Array, str]:
    """Resamples a position embedding to the grid `new`.

    It is [1, prefix tokens and grid, dim], or a map [1, rows, columns, dim] in the model.
    """
    is_map = len(shape) == 4
    if is_map and value.ndim == 4:
        declared, value = (value.shape[1], value.shape[2]), value.reshape(len(value), -1, value.shape[-1])
    prefix = 0 if is_map else shape[1] - math.prod(new)
    if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != shape[-1]:
        raise ValueError(f"checkpoint {value.shape}, model {shape}")
    old = _grid_of(value.shape[1], prefix, new, declared)
    tokens = jax.device_put(value, may_alias=False)
    if old != new:
        tokens = resample(tokens, old, new, num_prefix=prefix, resize=resize)
    rule = f"{_size(old)} to {_size(new)} positions, {RESIZE_WORDS[resize]}"
    return tokens.reshape(shape), "" if old == new else rule if declared else f"{rule}; the checkpoint's are taken to be a square"


def _grid_of(tokens: int, prefix: int, new: Grid, declared: Grid | None) -> Grid:
    """The rows and columns of a checkpoint's positions.

    Raises:
      ValueError: There are no positions, only one for many, or their grid cannot be determined.
    """
    count = tokens - prefix
    if declared is not None:
        if math.prod(declared) != count:
            raise ValueError(f"{tokens} positions are not the {prefix} + {_size(declared)} that the checkpoint declares")
        return declared
    if count < 1 or (count == 1 and new != (1, 1)):
        raise ValueError(f"{tokens} positions, of which {prefix} have no place, are no grid for {_size(new)}")
    side = math.isqrt(count)
    if side**2 == count:
        return side, side
    if count == math.prod(new):
        return new
    raise ValueError(f"{tokens} positions are not {prefix} and a square, nor {prefix} + {_size(new)}; the grid is unknown")


def _offsets_of(value: np.ndarray, shape: Shape) -> np.ndarray:
    """Converts a table of relative positions [heads, positions] to [heads, y, x].

    The positions are those of the model's rows and columns, or else of a square.

    Raises:
      ValueError: The number of positions fits neither.
    """
    heads, count = value.shape
    side = math.isqrt(count)
    if count == math.prod(shape[1:]):
        return value.reshape(heads, *shape[1:])
    if side**2 != count or not side:
        raise ValueError(f"{count} relative positions are neither {_size(shape[1:])} nor a square; the map is unknown")
    return value.reshape(heads, side, side)


_BICUBIC = RESIZE_WORDS["antialias"]


def _resize_lines(value: jax.Array, shape: Shape) -> tuple[jax.Array, str]:
    return resize_axis(value, -1, shape[-1]), "linear"


def _resize_offsets(value: jax.Array, shape: Shape) -> tuple[jax.Array, str]:
    """Resamples a table of relative positions [heads, y, x], in ascending order."""
    return jax.image.resize(value, (value.shape[0], *shape[1:]), "cubic"), _BICUBIC


def _resize_distances(value: jax.Array, shape: Shape) -> tuple[jax.Array, str]:
    """Resamples a table of distances [heads, |y|, |x|].

    It is a quarter of a symmetric table of relative positions, and resampled like this table.
    """
    pad = [(0, 0), *((n - 1, 0) for n in value.shape[1:])]
    whole = jax.image.resize(jnp.pad(value, pad, "reflect"), (value.shape[0], *(2 * n - 1 for n in shape[1:])), "cubic")
    return whole[:, shape[1] - 1 :, shape[2] - 1 :], f"mirrored, {_BICUBIC}"


def _resize_keys(value: jax.Array, shape: Shape) -> tuple[jax.Array, str]:
    """Resamples learned keys of relative positions along one axis, [positions, head_dim]."""
    return jax.image.resize(value, (shape[0], value.shape[1]), "cubic"), "cubic with antialiasing"


def _resize_filter(value: jax.Array, shape: Shape) -> tuple[jax.Array, str]:
    return resample_filter(value, (shape[0], shape[1])), _BICUBIC


# Resampling by the last part of a parameter's name. A table keeps its other axes, and does not fit
# if they differ.
_TABLES: dict[str, Callable[[jax.Array, Shape], tuple[jax.Array, str]]] = {
    **dict.fromkeys(("rel_pos_bias", "rpb", "small_bias", "large_bias"), _resize_offsets),
    **dict.fromkeys(("ah_bias", "aw_bias", "ha_bias", "wa_bias"), _resize_lines),
    **dict.fromkeys(("height_rel", "width_rel"), _resize_keys),
    "attention_biases": _resize_distances,
    "complex_weight": _resize_filter,
}


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))

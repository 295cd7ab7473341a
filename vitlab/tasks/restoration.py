"""Restoration: a picture from a degraded one, which is made of the picture itself on the device, or
is data of its own.

Denoising adds normal noise, and super-resolution averages squares of pixels and enlarges them
again, so that both pictures have one size. A prediction takes the picture as it is for the degraded
one.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Bounds, Count
from vitlab.config import ConfigError
from vitlab.data.fields import Image
from vitlab.functional import Trunk
from vitlab.heads.pixel_map import PixelMap
from vitlab.layers.conv import Conv
from vitlab.layers.initial import zeros_init
from vitlab.layers.resize import resize_bicubic
from vitlab.layers.roles import declare
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.dense import exact_sum, pixel_sum
from vitlab.tasks.task import Batch, Evaluation, Setting, Task, TaskOptions

_NOISE = 2**31 - 3  # folded into a step's key for the noise
_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, of R, G, B in [0, 1]
_WINDOW, _MIDDLE = 11, 128.0  # pixels on a side of the window of structural similarity; a middle pixel value
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # Wang et al. 2004
_STEP = 32.0  # pixel values that one unit of the head's output changes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions):
    """Options of the task."""

    degradation: Literal["noise", "downscale", "none"] = "noise"  # none: the data has the field "target", of the size of the image
    sigma: Annotated[float, Bounds(0, 255)] = 25.0  # deviation of the noise, of pixels in [0, 255]
    scale: Annotated[int, Bounds(2, 8)] = 2  # pixels on a side that become one; it must divide the image's sides
    dim: Count = 32  # width of the features of each pixel
    border: Annotated[int, Bounds(0, 64)] = 0  # pixels on each side that scores leave out; papers on super-resolution take the scale
    colour: Literal["rgb", "luma"] = "rgb"  # what scores compare: all channels, or Y of YCbCr (BT.601), as super-resolution does


class Head(nnx.Module):
    """The change to add to the degraded picture; nothing at first."""

    def __init__(self, setting: Setting, feature_info: tuple[FeatureInfo, ...], rngs: nnx.Rngs):
        dims, strides = [info.dim for info in feature_info], [info.stride for info in feature_info]
        dim, channels, dtype = setting.options.dim, setting.channels, setting.experiment.model.dtype
        self.pixel_map = PixelMap(dims, strides, in_channels=channels, dim=dim, dtype=dtype, rngs=rngs)
        self.conv = declare(Conv(dim, channels, kernel_size=3, kernel_init=zeros_init, rngs=rngs), "head")

    def __call__(self, features: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The change in pixel values."""
        return _STEP * self.conv(self.pixel_map(features, images)).astype(jnp.float32)


def prepare(batch: Batch, rng: Array | None, setting: Setting) -> Batch:
    """Keeps the picture as "target" and degrades "image", with other noise at each step, and the
    same one in every evaluation.
    """
    options, target = setting.options, batch["image"]
    if options.degradation == "none":
        if batch["target"].shape != target.shape:
            raise ValueError(f"a target of {batch['target'].shape[1:]} must be as large as its image, {target.shape[1:]}")
        return batch
    if options.degradation == "downscale":
        return batch | {"image": _downscaled(target.astype(jnp.float32), options.scale), "target": target}
    if rng is None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["index"])
        noise = jax.vmap(lambda key: jax.random.normal(key, target.shape[1:]))(keys)
    else:
        noise = jax.random.normal(jax.random.fold_in(rng, _NOISE), target.shape)
    return batch | {"image": _whole(target + options.sigma * noise), "target": target}


def _whole(pixels: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pixels as a file has them: whole numbers in [0, 255]."""
    return jnp.round(pixels).clip(0, 255)


def _downscaled(pixels: Float[Array, "b h w c"], scale: int) -> Float[Array, "b h w c"]:
    b, h, w, c = pixels.shape
    if h % scale or w % scale:
        raise ValueError(f"task.scale={scale} must divide the image's {h} x {w} pixels")
    small = _whole(pixels.reshape(b, h // scale, scale, w // scale, scale, c).mean((2, 4)))
    return _whole(resize_bicubic(small, (h, w)))


def forward(trunk: Trunk, head: Head, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
    """The restored picture, pixels in about [0, 255], not rounded."""
    images = batch["image"]
    return images + head(trunk.features(images, train=train, rngs=rngs), trunk.normalised(images))


def loss(outputs: Float[Array, "b h w c"], batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Charbonnier's sqrt(error^2 + 1e-6) of pixels in [0, 1] (Lai et al., arXiv:1704.03915, eq. 3),
    the mean over a picture.
    """
    error = (outputs - batch["target"]) / 255
    return {"loss": jnp.sqrt(jnp.square(error) + 1e-6).mean((1, 2, 3))}


def evaluation(setting: Setting) -> Evaluation:
    """The mean squared error and the structural similarity of each picture, after rounding to whole
    pixel values; and those of the degraded one.
    """
    if setting.preprocessing.max_value != 255:
        raise ConfigError(f"model.max_value={setting.preprocessing.max_value}: restoration works on pictures of 8 bits; leave it out")
    options = setting.options

    def compared(pixels: Array) -> Float[Array, "b h w c"]:
        inside = slice(options.border, -options.border or None)
        pixels = pixels[:, inside, inside].astype(jnp.float32)
        if options.colour == "luma" and pixels.shape[-1] == 3:
            return (pixels / 255 * jnp.asarray(_LUMA)[None, None, None]).sum(-1, keepdims=True) + 16
        return pixels

    def measure(outputs: Float[Array, "b h w c"], batch: Batch) -> dict[str, Array]:
        target = compared(batch["target"])
        pairs = {"": compared(_whole(outputs)), "degraded_": compared(batch["image"])}
        rows = {f"{name}error": pixel_sum(jnp.square(x - target)) / target[0].size for name, x in pairs.items()}
        if min(target.shape[1:3]) >= _WINDOW:
            rows |= {f"{name}similarity": _similarity(x, target) for name, x in pairs.items()}
        return rows

    return Evaluation(measure=measure, finish=finish, rows=("error", "degraded_error", "similarity", "degraded_similarity"))


def _similarity(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """The structural similarity of `vitlab.metrics.restoration`, the mean over pixels and
    channels.
    """
    x, y = x - _MIDDLE, y - _MIDDLE  # float32 keeps more digits of the variances so, which do not change
    (mean_x, mean_y), both = (_blurred(x), _blurred(y)), _blurred(x * y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = both - mean_x * mean_y
    mean_x, mean_y = mean_x + _MIDDLE, mean_y + _MIDDLE
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    values = above / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    return pixel_sum(values) / values[0].size


def _blurred(x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    """The valid part of a convolution with an 11 x 11 Gaussian of deviation 1.5."""
    taps = np.exp(-np.square(np.arange(_WINDOW) - _WINDOW // 2) / (2 * 1.5**2))
    for axis in (1, 2):
        count = x.shape[axis] - _WINDOW + 1
        parts = (float(tap) * jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i, tap in enumerate(taps / taps.sum()))
        x = functools.reduce(operator.add, parts)
    return x


def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
    """Gives "psnr" in dB, where an equal picture counts 100, and "ssim", of pictures of at least 11
    x 11 pixels; means over the pictures, and those of the degraded ones.
    """
    if not images or not np.isfinite(totals["error"]).all():
        return {}
    out = {"psnr": _psnr(totals["error"])}
    if "similarity" in totals:
        out["ssim"] = exact_sum(totals["similarity"]) / images
    out["degraded_psnr"] = _psnr(totals["degraded_error"])
    return out | ({"degraded_ssim": exact_sum(totals["degraded_similarity"]) / images} if "similarity" in totals else {})


def _psnr(errors: np.ndarray) -> float:
    values = [100.0 if error == 0 else 10 * math.log10(255**2 / error) for error in errors.astype(np.float64).tolist()]
    return exact_sum(np.array(values)) / len(values)


TASK = Task(
    options=Options,
    fields=lambda options: ("target",) if options.degradation == "none" else (),
    head=Head,
    forward=forward,
    prepare=prepare,
    loss=loss,
    evaluation=evaluation,
    best=("psnr", "max"),
    results={"restored": Image()},
    predictions=lambda outputs, setting: {"restored": _whole(outputs).astype(jnp.uint8)},
)

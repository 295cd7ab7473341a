"""Peak signal-to-noise ratio and structural similarity of 8-bit images, as in BasicSR."""

import functools
import math
import operator

import numpy as np
from jaxtyping import Float, UInt8

_Y = np.array([65.481, 128.553, 24.966], np.float32)  # ITU-R BT.601 weights of R, G, B in [0, 1]
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def image_quality(
    restored: UInt8[np.ndarray, "h w c"], target: UInt8[np.ndarray, "h w c"], *, border: int = 0, luma: bool = False
) -> dict[str, float]:
    """Returns PSNR and SSIM of one image; a set's number is their mean over images.

    Args:
      restored: Pixels in RGB, or grey with one channel.
      target: The true pixels, of the same shape.
      border: Pixels to cut off on each side first; super-resolution cuts its scale.
      luma: True: compare Y of YCbCr (BT.601, 16 to 235, not rounded), as tables on super-resolution
        do, instead of all channels.

    Returns:
      "psnr" in dB, infinite for equal images, over all channels together; "ssim", the mean over
      channels (Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5, its valid part, biased
      variances).

    Raises:
      ValueError: The shapes differ, or fewer than 11 x 11 pixels are left.
    """
    if restored.shape != target.shape:
        raise ValueError(f"{restored.shape=} must be {target.shape=}")
    a, b = (_prepared(x, border, luma) for x in (restored, target))
    if min(a.shape[:2]) < 11:
        raise ValueError(f"{target.shape=} without {border=} must have at least 11 x 11 pixels")
    error = float(np.mean(np.square(a - b)))
    psnr = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    return {"psnr": psnr, "ssim": float(np.mean([_similarity(a[..., i], b[..., i]) for i in range(a.shape[-1])]))}


def luma_of(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Returns Y of YCbCr (ITU-R BT.601) in [16, 235], float32, from RGB."""
    return (image.astype(np.float32) / 255) @ _Y + np.float32(16)


def _prepared(image: np.ndarray, border: int, luma: bool) -> np.ndarray:
    image = image[border : image.shape[0] - border, border : image.shape[1] - border]
    if luma and image.shape[-1] == 3:
        # BasicSR divides by 255 and multiplies again, in float32.
        return (luma_of(image) / np.float32(255) * np.float32(255)).astype(np.float64)[..., None]
    return image.astype(np.float64)


def _similarity(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((above / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean())


def _blur(x: np.ndarray) -> np.ndarray:
    """Returns the valid part of a convolution with an 11 x 11 Gaussian of sigma 1.5."""
    taps = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    taps /= taps.sum()
    rows = functools.reduce(operator.add, (tap * x[i : x.shape[0] - 10 + i] for i, tap in enumerate(taps)))
    return functools.reduce(operator.add, (tap * rows[:, i : x.shape[1] - 10 + i] for i, tap in enumerate(taps)))

"""Operators of augmentation policies: uint8 [h, w, c] in and out, results as Pillow's.

Operators of single values use a look-up table. All are exact but `affine` (fixed-point weights;
cubic kernel with a = -0.75, Pillow's has -0.5) and `blur` (a true Gaussian, Pillow's is three box
filters).
"""

import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Pixels = UInt8[np.ndarray, "h w c"]
_VALUES = np.arange(256)
_CV2 = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_MEAN = (124, 116, 104)  # ImageNet's mean colour, for pixels outside the moved image
_LUMA = np.array([[19595, 38470, 7471, 0x8000]], np.float32) / 2**16
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _look_up(image: Pixels, table: np.ndarray) -> Pixels:
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)).reshape(image.shape)


def auto_contrast(image: Pixels) -> Pixels:
    """Stretches the values of each channel to the whole range."""
    tables = []
    for channel in cv2.split(image):
        low, high = int(channel.min()), int(channel.max())
        scale = 255.0 / (high - low) if high > low else 1.0
        tables.append(np.trunc(_VALUES * scale - (low * scale if high > low else 0)))
    return _look_up(image, np.stack(tables, -1)[None])


def equalize(image: Pixels) -> Pixels:
    """Flattens the histogram of each channel."""
    tables = []
    for channel in cv2.split(image):
        counts = cv2.calcHist([channel], [0], None, [256], (0, 256)).ravel().astype(np.int64)
        present = counts[counts > 0]
        step = int(present.sum() - present[-1]) // 255
        tables.append((step // 2 + np.cumsum(counts) - counts) // step if step else _VALUES)
    return _look_up(image, np.stack(tables, -1)[None])


def invert(image: Pixels) -> Pixels:
    """Inverts each value: 255 - x."""
    return 255 - image


def solarize(image: Pixels, threshold: int = 128) -> Pixels:
    """Inverts values of at least `threshold`."""
    return _look_up(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: Pixels, amount: int) -> Pixels:
    """Adds `amount` to values below 128."""
    return _look_up(image, np.where(_VALUES < 128, _VALUES + amount, _VALUES))


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keeps the highest `bits` bits of each value."""
    return image & np.uint8(256 - 2 ** (8 - max(bits, 0))) if bits < 8 else image


def brightness(image: Pixels, factor: float) -> Pixels:
    """Blends from black (factor 0) to the image (1) and beyond."""
    return _look_up(image, np.trunc(_VALUES.astype(np.float32) * np.float32(factor)))


def contrast(image: Pixels, factor: float) -> Pixels:
    """Blends from the mean grey (factor 0) to the image (1) and beyond."""
    mean = int(grey(image).mean() + 0.5)
    return _look_up(image, np.trunc(mean + np.float32(factor) * (_VALUES - mean).astype(np.float32)))


def color(image: Pixels, factor: float) -> Pixels:
    """Changes saturation: blends from grey (factor 0) to the image (1) and beyond.

    A grey image is returned unchanged.
    """
    return image if image.shape[2] == 1 else _away_from(grey_scale(image).astype(np.float32), image, factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Blends from the image smoothed by 3 x 3 (factor 0) to the image (1) and beyond."""
    smooth = cv2.filter2D(image, cv2.CV_32F, _SMOOTH, delta=0.5).reshape(image.shape)
    smooth = np.trunc(smooth, out=smooth)
    smooth[[0, -1]], smooth[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return _away_from(smooth, image, factor)


def grey(image: Pixels) -> UInt8[np.ndarray, "h w 1"]:
    """ITU-R 601 luma in one channel, rounded as Pillow does."""
    if image.shape[2] == 1:
        return image
    # The weights are integers below 2**24 over a power of two, exact in float32.
    return cv2.transform(image.astype(np.float32), _LUMA).astype(np.uint8)[..., None]


def grey_scale(image: Pixels) -> Pixels:
    """The luma, repeated in all channels."""
    one = grey(image)
    return cv2.merge([one] * image.shape[2]).reshape(image.shape)


def blur(image: Pixels, sigma: float) -> Pixels:
    """Blurs with a Gaussian of standard deviation `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def affine(image: Pixels, matrix: tuple[float | int, ...], interpolation: str) -> Pixels:
    """Moves pixels: output (x, y) shows (a x + b y + c, d x + e y + f) of the image.

    Coordinates count from the image's corner; a mean colour fills the outside.
    """
    a, b, c, d, e, f = map(float, matrix)
    inverse = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])  # counted from pixel centres
    size = image.shape[1], image.shape[0]
    flags = _CV2[interpolation] | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, inverse, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill_of(image)).reshape(
        image.shape
    )


def fill_of(image: np.ndarray) -> tuple[int, ...]:
    """Colour outside the moved image: a mean colour, or black for other types than bytes."""
    if image.dtype != np.uint8:
        return (0,)
    return _MEAN if image.shape[2] == 3 else (128,)


def rotate(image: Pixels, degrees: float, interpolation: str) -> Pixels:
    """Rotates anticlockwise about the centre."""
    return affine(image, rotation((image.shape[0], image.shape[1]), degrees), interpolation)


def rotation(size: tuple[int, int], degrees: float) -> tuple[float | int, ...]:
    """The matrix of `rotate` for an image of (height, width)."""
    h, w = size
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # Relative to the centre, output (x, y) shows (cos x - sin y, sin x + cos y); y points down.
    return cos, -sin, w / 2 * (1 - cos) + h / 2 * sin, sin, cos, h / 2 * (1 - cos) - w / 2 * sin


def _away_from(other: Float32[np.ndarray, "h w c"], image: Pixels, factor: float) -> Pixels:
    """other + factor * (image - other), clipped to the range and rounded towards zero."""
    out = image.astype(np.float32)
    out -= other
    out *= np.float32(factor)
    out += other
    return np.clip(out, 0, 255, out=out).astype(np.uint8)

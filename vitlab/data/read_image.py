"""Reads one image as a user passes it: a file, encoded bytes, a PIL image or an array."""

import io
import os
import stat
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

from vitlab.data.decode import DecodeError, Decoder, decode
from vitlab.data.paths import is_remote, read_bytes
from vitlab.data.samples import samples_of

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")  # modes of Pillow that PNG stores without loss


def read_image(image: Any, channels: int, decode: Decoder = decode) -> UInt8[np.ndarray, "h w {channels}"]:
    """Reads one image as pixels.

    Args:
      image: A path (also in a bucket, "gs://..."), the bytes of an encoded image, a PIL image, or
        an array (numpy, JAX or convertible by numpy) of shape [h, w] or [h, w, c] with 1, 3 or 4
        channels, uint8 or floating point in [0, 1]. Transparent pixels get the background of
        `decode`.
      channels: Channels of the result: 3 (RGB; grey is repeated) or 1 (grey, by the ITU-R 601
        luma).
      decode: `vitlab.data.decode.decode`, or the result of `vitlab.data.decode.decoder` for the
        background and limit of a config.

    Raises:
      OSError: The file is unreadable or no regular file.
      DecodeError: The bytes are no image, or the array has another shape, type or range.
    """
    if isinstance(image, (str, os.PathLike)):
        return decode(_bytes_of(os.fspath(image)), channels)
    if isinstance(image, (bytes, bytearray)):
        return decode(bytes(image), channels)
    if isinstance(image, Image.Image):
        return decode(_as_png(ImageOps.exif_transpose(image)), channels)
    pixels = _pixels_of_array(image)
    if pixels.shape[-1] == 4:
        return decode(_as_png(Image.fromarray(pixels)), channels)
    return decode(pixels, channels)


def read_samples(image: Any, channels: int) -> Shaped[np.ndarray, "h w {channels}"]:
    """Reads one image of any number of channels or type of samples, see `vitlab.data.samples`.

    Args:
      image: A path, the bytes of an encoded image, or an array.
      channels: Channels that it must have.

    Raises:
      OSError: The file is unreadable or no regular file.
      DecodeError: It is no such image.
    """
    if isinstance(image, (str, os.PathLike)):
        image = _bytes_of(os.fspath(image))
    return samples_of(bytes(image) if isinstance(image, bytearray) else image if isinstance(image, bytes) else np.asarray(image), channels)


def is_single(images: Any) -> bool:
    """Whether `images` is one image in a form of `read_image`, rather than several."""
    if isinstance(images, (str, os.PathLike, bytes, bytearray, Image.Image)):
        return True
    return hasattr(images, "ndim") and images.ndim <= 3


def _bytes_of(path: str) -> bytes:
    if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe may block, and a device may not end
        raise OSError(None, "not a regular file", path)
    return read_bytes(path)


def _as_png(image: Image.Image) -> bytes:
    """The image as PNG, so that `decode` treats its depth, palette and transparency."""
    if image.mode == "F":
        raise DecodeError('a PIL image of mode "F" has no range: give an array of floats in [0, 1]')
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGBA" if image.has_transparency_data else "RGB")).save(
        buffer, "PNG", compress_level=0
    )
    return buffer.getvalue()


def _pixels_of_array(image: Any) -> UInt8[np.ndarray, "h w c"]:
    array = np.asarray(image)
    shape = array.shape
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in shape:
        raise DecodeError(f"an array of {shape=} is no image: it must be [h, w] or [h, w, c] with 1, 3 or 4 channels")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise DecodeError(f"an array of dtype={array.dtype.name} is no image: it must be uint8, or floating point in [0, 1]")
    array = array.astype(np.float32)
    if not (array.min() >= 0 and array.max() <= 1):  # true for NaN as well
        rule = "floating point pixels must be in [0, 1]"
        raise DecodeError(f"{rule}, not [{array.min():.4g}, {array.max():.4g}]; divide by 255, do not normalise")
    return np.round(array * 255).astype(np.uint8)

"""Encoded images to uint8 arrays: OpenCV first, Pillow for what it cannot.

Both give RGB, apply the EXIF rotation, drop alpha, take the first frame of an animation, and scale 16 bits to 8.
"""

import io
import os

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))  # read once, when cv2 is imported; its own limit is 2**30

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

cv2.setNumThreads(1)  # the loader's threads work on different images; more inside each would only contend
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what cannot be decoded is reported by the loader, with its name


class DecodeError(ValueError):
    """The bytes are no image that can be decoded; the message says why in a few words."""


def decode(image: bytes | UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes, or passes on what is decoded already, with the wanted number of channels.

    Args:
      image: An encoded image (JPEG, PNG, WebP, GIF, BMP, TIFF, ...) or its pixels.
      channels: 3 (RGB; grey is repeated) or 1 (grey, by the ITU-R 601 luma).

    Raises:
      DecodeError: The bytes are empty, truncated, too large (2**28 pixels) or no image.
    """
    if isinstance(image, np.ndarray):
        return to_channels(image, channels)
    if not image:
        raise DecodeError("empty")
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), mode)
    except cv2.error:
        pixels = None
    if pixels is None:
        return _decode_with_pillow(image, channels)
    return pixels.reshape(*pixels.shape[:2], channels)


def to_channels(image: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w {channels}"]:
    """Repeats grey into RGB, or takes the luma of RGB."""
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _decode_with_pillow(data: bytes, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 or 32 bits, which `convert` would clip
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    except Image.DecompressionBombError as error:
        raise DecodeError("too large") from error
    except Image.UnidentifiedImageError as error:
        raise DecodeError("not an image") from error
    except Exception as error:  # Pillow's plugins raise whatever they meet in broken data
        raise DecodeError("truncated" if "truncated" in str(error).lower() else f"broken: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels)

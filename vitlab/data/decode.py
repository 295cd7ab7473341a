"""Decodes images to uint8 arrays: OpenCV for plain JPEG, PNG and WebP, Pillow for the rest.

Both return RGB or grey, apply the EXIF rotation, take the first frame of an animation, keep the
high byte of 16-bit samples, and put transparent pixels on a background. All images of this project
are decoded here, so that the contents of a file can never select another format or start another
program.
"""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))  # cv2 reads it once, at import; OpenCV's own limit is 2**30

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin

from vitlab.config import DataConfig
from vitlab.data.formats import FORMATS
from vitlab.data.headers import DecodeError, Header, check_scans, jpeg2000_size, read_header, without_metadata
from vitlab.data.netpbm import is_netpbm, netpbm_header, read_netpbm

cv2.setNumThreads(1)  # the loader's threads already use all cores, an image each
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the loader reports images that cannot be decoded, by name
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

Decoder = Callable[[bytes | UInt8[np.ndarray, "h w c"], int], UInt8[np.ndarray, "h w c"]]  # `decode` with its options bound
Colour = tuple[int, int, int]  # RGB, each in [0, 255]
WHITE = (255, 255, 255)
MAX_BYTES = DataConfig.max_image_bytes
_BYTES = {"1": 1, "L": 1, "La": 4, "LA": 4, "P": 3, "I;16": 2, "I;16B": 2, "I;16L": 2}  # bytes of a pixel, by Pillow's mode; others have 4
_TILE_SIZE, _SAMPLE_FORMAT, _SAMPLES, _BITS, _PHOTOMETRIC = (322, 323), 339, 277, 258, 262  # tags of TIFF 6.0
_UNSIGNED = frozenset((1, 4))  # sample formats of TIFF: unsigned and undefined
_WHITE_IS_ZERO = 0


def decode(
    image: bytes | UInt8[np.ndarray, "h w c"], channels: int, *, background: Colour = WHITE, max_bytes: int = MAX_BYTES
) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes an image, or takes decoded pixels, and converts it to the requested channels.

    Args:
      image: An image in one of `FORMATS`, or its pixels.
      channels: 3 (RGB; grey is repeated) or 1 (grey, by the ITU-R 601 luma).
      background: RGB colour under transparent and half-transparent pixels.
      max_bytes: Largest size of the decoded pixels in bytes, checked before decoding; decoding
        takes at most about four times as much memory.

    Raises:
      DecodeError: The bytes are empty, damaged, no image or too large, or their samples have no
        agreed meaning as brightness (signed or 32-bit integers, floating point).
    """
    if isinstance(image, np.ndarray):
        return to_channels(image, channels)
    if not image:
        raise DecodeError("empty")
    header = read_header(image)
    if header is not None:
        _check_size(header, channels, max_bytes)
        if header.many_scans:
            check_scans(image)
        if _is_png(image):
            image = without_metadata(image, header)
        if header.plain:
            pixels = _decode_with_opencv(image, channels)
            if pixels is not None:
                return pixels
    return _decode_with_pillow(image, channels, background, max_bytes)


def decoder(data: DataConfig) -> Decoder:
    """`decode` with the background and the size limit of a config; it can be pickled."""
    return functools.partial(decode, background=data.background, max_bytes=data.max_image_bytes)


def header_of(image: bytes) -> Header:
    """The header of an image in any of `FORMATS`, read without decoding.

    Raises:
      DecodeError: The bytes have no such header.
    """
    header = read_header(image)
    if header is not None:
        return header
    if is_netpbm(image):
        return netpbm_header(image)
    with _pillow_errors(), _open(image) as file:
        return _header(file, image)


def to_channels(image: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w {channels}"]:
    """Converts the number of channels: repeats grey into RGB, or takes the luma of RGB."""
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _is_png(data: bytes) -> bool:
    return data[:1] == b"\x89"


def _check_size(header: Header, channels: int, max_bytes: int) -> None:
    size = header.width * header.height * max(header.samples, channels)
    if size > max_bytes:
        raise DecodeError(
            f"too large: {header.width} x {header.height} pixels take {size} bytes; if the file is to be trusted, raise "
            f"data.max_image_bytes={max_bytes}"
        )


def _decode_with_opencv(data: bytes, channels: int) -> np.ndarray | None:
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error:
        return None
    return None if pixels is None else pixels.reshape(*pixels.shape[:2], channels)


def _decode_with_pillow(data: bytes, channels: int, background: Colour, max_bytes: int) -> np.ndarray:
    with _pillow_errors():
        if is_netpbm(data):
            _check_size(netpbm_header(data), channels, max_bytes)
            image = _flattened(read_netpbm(data), background)
        else:
            with _open(data) as file:
                _check_size(_header(file, data), channels, max_bytes)
                image = _loaded(file, data, background)
        pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turns Pillow's errors into DecodeError; its plug-ins raise any type on damaged data."""
    try:
        yield
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too large: Pillow decodes at most 178 million pixels") from error
    except Image.UnidentifiedImageError as error:
        raise DecodeError("not an image") from error
    except Exception as error:
        raise DecodeError("truncated" if "truncated" in str(error).lower() else f"broken: {error}") from error


def _header(file: Image.Image, data: bytes) -> Header:
    """The header of an image that Pillow has opened and not decoded.

    If a format states its size twice, the larger size counts.
    """
    (width, height), size = file.size, _BYTES.get(file.mode, 4)
    if file.format == "JPEG2000":  # Pillow's decoder holds a 32-bit integer for each sample
        *own, components = jpeg2000_size(data)
        width, height, size = max(width, own[0]), max(height, own[1]), 2 * components
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        tile = [file.tag_v2.get(tag, 0) for tag in _TILE_SIZE]
        size *= max(1, -(-tile[0] * tile[1] // (width * height)))  # a tile is decoded whole, even if the image is smaller
    return Header(width, height, size, file.mode[0] not in "1LIF" or file.mode == "LAB", False)


def _loaded(file: Image.Image, data: bytes, background: Colour) -> Image.Image:
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        _check_samples(file)
    transparent = file.info.get("transparency")
    if _is_png(data) and data[24] == 16 and isinstance(transparent, tuple):  # 16-bit RGB, of which Pillow keeps 8 bits
        wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if wide is None:
            raise DecodeError("truncated or damaged")
        rgba = np.asarray(cv2.cvtColor(wide, cv2.COLOR_BGRA2RGBA), np.uint16)
        return _flattened(Image.fromarray((rgba >> 8).astype(np.uint8)), background)
    file.load()
    ImageOps.exif_transpose(file, in_place=True)
    return _flattened(_eight_bits(file) if file.mode[0] in "IF" else file, background)


def _check_samples(file: TiffImagePlugin.TiffImageFile) -> None:
    formats = file.tag_v2.get(_SAMPLE_FORMAT, (1,))
    if not _UNSIGNED.issuperset(formats if isinstance(formats, tuple) else (formats,)):
        raise DecodeError("a TIFF of signed or floating-point samples, whose black and white are not agreed; save 8 or 16 bits")


def _eight_bits(file: Image.Image) -> Image.Image:
    """Converts one sample of up to 16 bits to mode L, or to LA if one value is transparent."""
    if file.mode == "F" or (file.mode == "I" and file.format != "PPM"):
        raise DecodeError(f"a {file.format} of 32-bit samples, whose black and white are not agreed; save 8 or 16 bits")
    values = np.asarray(file)
    shift = 8
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        shift = max(file.tag_v2.get(_BITS, (16,))) - 8
        if file.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = 2 ** (shift + 8) - 1 - values.astype(np.uint16)
    grey = Image.fromarray((values >> shift).astype(np.uint8))
    transparent = file.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _flattened(image: Image.Image, background: Colour) -> Image.Image:
    """The image on the background, without transparency."""
    if not image.has_transparency_data:
        return image if image.mode in ("1", "L") else image.convert("RGB")
    if image.mode == "La":  # Pillow has no direct conversion
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", image.size, background)
    flat.paste(rgba, mask=rgba)
    return flat

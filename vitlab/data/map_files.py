"""Files of index maps and value maps (PNG, PFM, .npy), and of results that commands write."""

import io
import json
import math
import os
import re
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vitlab.config import ConfigError
from vitlab.data.decode import MAX_BYTES, header_of
from vitlab.data.headers import DecodeError
from vitlab.drawing.overlay import palette

NPY, PFM = b"\x93NUMPY", re.compile(rb"P([Ff])\s+(\d+)\s+(\d+)\s+(-?[\d.]+(?:[eE][-+]?\d+)?)\s")
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")
_INDEX_MODES = ("1", "L", "P", "I;16", "I")


def index_map_of(value: Any) -> UInt8[np.ndarray, "h w"]:
    """Reads an index map: integers [h, w], or an image of palette indices or grey values.

    A palette's colours and the EXIF rotation are ignored.

    Raises:
      DecodeError: The image cannot be read, or an index is not in 0..255.
    """
    indices = value if isinstance(value, np.ndarray) else _index_image(value)
    if indices.ndim != 2 or indices.dtype.kind not in "uib":
        raise DecodeError(f"an array of shape {indices.shape} and type {indices.dtype}; an index map is integers [h, w]")
    if indices.dtype != np.uint8 and indices.size and not (indices.min() >= 0 and indices.max() <= 255):
        raise DecodeError(f"an index outside: {indices.min()} to {indices.max()} is not in 0..255")
    return indices.astype(np.uint8)


def _index_image(data: bytes) -> np.ndarray:
    if data[:6] == NPY:
        return read_npy(data)
    _check(data)
    try:
        with Image.open(io.BytesIO(data), formats=_LOSSLESS) as file:
            if file.mode not in _INDEX_MODES:
                raise DecodeError(f"an image of mode {file.mode}; an index map is grey or has a palette")
            return np.asarray(file)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plug-ins raise any type of error on damaged data
        raise DecodeError(f"no index map in {', '.join(_LOSSLESS)}") from error


def value_map_of(value: Any, unit: float) -> Float32[np.ndarray, "h w"]:
    """Reads a value map: an array [h, w] or [h, w, 1], a .npy, a PFM or a 16-bit PNG.

    Counts of a PNG are divided by `unit`, and 0 becomes NaN, as do values that are not finite.

    Raises:
      DecodeError: The map cannot be read.
    """
    values = value if isinstance(value, np.ndarray) else _values(value, unit)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise DecodeError(f"an array of shape {values.shape} and type {values.dtype}; a value map is numbers [h, w]")
    values = values.astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _values(data: bytes, unit: float) -> np.ndarray:
    if data[:6] == NPY:
        return read_npy(data)
    if match := PFM.match(data):
        return read_pfm(data, match)
    _check(data)
    counts = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if counts is None or counts.ndim != 2:
        raise DecodeError("no value map: it must be .npy, PFM or a grey PNG of 16 bits")
    return np.where(counts == 0, np.float32(np.nan), counts.astype(np.float32) / np.float32(unit))


def read_npy(data: bytes) -> np.ndarray:
    """Reads the numeric array of a .npy file.

    Raises:
      DecodeError: The file is damaged, or its header declares more data than it has.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = read_header(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"{len(data)} bytes are no {dtype} of {shape}")
        return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if column_major else "C")
    except Exception as error:  # numpy raises various types on a damaged header
        raise DecodeError(f"a damaged .npy file: {error}") from error


def read_pfm(data: bytes, match: re.Match[bytes]) -> np.ndarray:
    """Reads a portable float map (Debevec), whose rows are stored bottom up.

    It is little-endian if the scale in its header is negative.
    """
    channels, width, height = 3 if match[1] == b"F" else 1, int(match[2]), int(match[3])
    if len(data) - match.end() != 4 * channels * width * height or channels * width * height == 0:
        raise DecodeError("a truncated PFM")
    values = np.frombuffer(data, "<f4" if float(match[4]) < 0 else ">f4", offset=match.end())
    return values.reshape(height, width, channels)[::-1]


def _check(data: bytes) -> None:
    if not data:
        raise DecodeError("empty")
    header = header_of(data)
    if header.width * header.height * header.samples > MAX_BYTES:
        raise DecodeError(f"too large: {header.width} x {header.height} pixels")


def write_picture(path: str | os.PathLike[str], pixels: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes an image in the format of the file's suffix."""
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(path)


def write_index_map(path: str | os.PathLike[str], indices: UInt8[np.ndarray, "h w"]) -> None:
    """Writes a PNG whose palette indices are the classes."""
    image = Image.fromarray(indices, "P")
    image.putpalette(palette().ravel().tolist())
    image.save(path, "PNG")


def write_value_map(path: str | os.PathLike[str], values: Float32[np.ndarray, "h w"], unit: float) -> None:
    """Writes .png (16 bits, value * unit, void as 0), .pfm or .npy, by the file's suffix.

    Raises:
      ConfigError: The suffix is another one.
    """
    suffix = os.path.splitext(os.fspath(path))[1]
    if suffix == ".png":
        counts = np.where(np.isfinite(values), np.clip(np.round(values * unit), 1, 65535), 0)  # at least 1, because 0 is void
        Image.fromarray(counts.astype(np.uint16)).save(path, "PNG")
    elif suffix == ".pfm":
        with open(path, "wb") as file:
            file.write(b"Pf\n%d %d\n-1.0\n" % (values.shape[1], values.shape[0]) + values[::-1].astype("<f4").tobytes())
    elif suffix == ".npy":
        np.save(path, values, allow_pickle=False)
    else:
        raise ConfigError(f"{os.fspath(path)} must end in .png, .pfm or .npy")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes nested lists and mappings of numbers and names; NaN becomes null."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(_without_nan(value), file, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return list(map(_without_nan, value))
    return None if isinstance(value, float) and value != value else value

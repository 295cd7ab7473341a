"""Images of any number of channels, of 8 or 16 bits or floating point.

They are arrays, .npy, .npz of one array, PFM, PNG, or TIFF as far as OpenCV reads it (at most four
channels). Their samples are taken as they are: no colour is converted and nothing is rotated.
"""

import zipfile
from io import BytesIO
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from vitlab.data.decode import MAX_BYTES, header_of
from vitlab.data.headers import DecodeError
from vitlab.data.map_files import NPY, PFM, read_npy, read_pfm

SampleType = Literal["uint8", "uint16", "float32"]
_ZIP, _TIFF, _PNG = b"PK\x03\x04", (b"II*\x00", b"MM\x00*"), b"\x89PNG"
_LARGEST = {"uint8": 255, "uint16": 65535}  # value that is shown as white


def samples_of(value: Any, channels: int, dtype: SampleType | None = None) -> Shaped[np.ndarray, "h w {channels}"]:
    """Reads an image whose samples are of one type.

    Args:
      value: An array [h, w] or [h, w, channels], or an encoded image.
      channels: Channels that it must have.
      dtype: Type that the samples must have; float32 takes any floating point. None takes any of
        the three types.

    Raises:
      DecodeError: The image cannot be read, has other channels or samples, or a sample is not
        finite.
    """
    samples = value if isinstance(value, np.ndarray) else _decoded(value)
    samples = samples[..., None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or samples.shape[2] != channels or 0 in samples.shape:
        raise DecodeError(f"an image of shape {samples.shape}; it must be [height, width, {channels}]")
    own = "float32" if samples.dtype.kind == "f" else samples.dtype.newbyteorder("=").name
    if own not in ("float32", *_LARGEST) or own != (dtype or own):
        raise DecodeError(f"an image of {samples.dtype}; it must be {dtype or 'uint8, uint16 or floating point'}")
    samples = np.ascontiguousarray(samples, own)
    if own == "float32" and not np.isfinite(samples).all():
        raise DecodeError("a sample that is not finite")
    return samples


def _decoded(data: bytes) -> np.ndarray:
    if data[:4] == _ZIP:
        data = _only_member(data)
    if data[: len(NPY)] == NPY:
        return read_npy(data)
    if match := PFM.match(data):
        return read_pfm(data, match)
    if data[:4] != _PNG and data[:4] not in _TIFF:
        raise DecodeError("no image of samples: it must be .npy, .npz, PFM, PNG or TIFF")
    if data[:4] == _PNG:
        header = header_of(data)
        if header.width * header.height * header.samples > MAX_BYTES:
            raise DecodeError(f"too large: {header.width} x {header.height} pixels")
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DecodeError("damaged, or too large") from error
    if samples is None:
        raise DecodeError("truncated or damaged")
    order = {3: (2, 1, 0), 4: (2, 1, 0, 3)}.get(samples.shape[2] if samples.ndim == 3 else 1)  # OpenCV's order is blue, green, red
    return samples if order is None else samples[..., order]


def _only_member(data: bytes) -> bytes:
    """The bytes of the only array of a .npz file."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            (name,) = archive.namelist()
            with archive.open(name) as file:
                out = file.read(MAX_BYTES + 1)
    except Exception as error:  # zipfile raises various types on damaged archives
        raise DecodeError("a damaged .npz file, or one of several arrays") from error
    if len(out) > MAX_BYTES:
        raise DecodeError(f"too large: more than {MAX_BYTES} bytes")
    return out


def as_picture(samples: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Samples as a picture to look at: the first three channels, or the first as grey.

    Integers are shown from 0 to their largest value, floating point from its least to its largest
    sample.
    """
    shown = samples[..., :3] if samples.shape[-1] >= 3 else np.repeat(samples[..., :1], 3, -1)
    if shown.dtype == np.uint8:
        return shown
    shown = shown.astype(np.float32)
    low, high = (0.0, float(_LARGEST["uint16"])) if samples.dtype == np.uint16 else (float(shown.min()), float(shown.max()))
    return np.round((shown - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)

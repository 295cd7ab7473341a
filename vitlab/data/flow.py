"""Optical flow as a field: where each pixel moves to in a second image."""

import dataclasses
import os
import struct
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vitlab.config import AugmentConfig
from vitlab.data.decode import MAX_BYTES
from vitlab.data.fields import Row, check_size, dense_reason
from vitlab.data.headers import DecodeError
from vitlab.data.map_files import NPY, read_npy
from vitlab.data.warp import Size, Warp

_FLO = struct.Struct("<4sii")  # "PIEH", width, height (Baker et al., "A Database and Evaluation Methodology for Optical Flow")
_UNKNOWN = 1e9  # a larger value of a .flo file is void


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """A vector (right, down) in pixels at each pixel, float32 [b, h, w, 2], NaN where it is void.

    Vectors are turned, scaled and mirrored as the image is.
    """

    suffix: str = ".flo"
    void = float("nan")

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.full((count, *size, 2), self.void, np.float32)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        flow = value if isinstance(value, np.ndarray) else read_npy(value) if value[: len(NPY)] == NPY else _read_flo(value)
        if flow.ndim != 3 or flow.shape[2] != 2 or flow.dtype.kind != "f":
            raise DecodeError(f"an array of shape {flow.shape} and type {flow.dtype}; a flow is floating point [h, w, 2]")
        check_size(flow, size)
        flow = flow.astype(np.float32)
        known = (np.abs(flow) < _UNKNOWN).all(-1, keepdims=True)  # NaN is not
        return np.where(known, flow, np.float32(self.void))

    def warp(self, value: Row, warp: Warp) -> Row:
        linear = np.linalg.inv(warp.matrix)[:2, :2].astype(np.float32)
        return warp.nearest(value, self.void) @ linear.T

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        return dense_reason(augment)

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        """Direction as hue, length as saturation; void is black."""
        known = np.isfinite(value).all(-1)
        vectors = np.where(known[..., None], value, 0)
        length, angle = np.hypot(vectors[..., 0], vectors[..., 1]), np.arctan2(vectors[..., 1], vectors[..., 0])
        longest = float(length.max())
        parts = np.degrees(angle) % 360 / 2, 255 * length / max(longest, 1e-9), np.where(known, 255, 0)
        return _from_hsv(np.stack(parts, -1).astype(np.uint8)), f"up to {longest:.3g} pixels" if known.any() else "void"

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        """Writes a .flo file; void becomes 1e10."""
        height, width = value.shape[:2]
        with open(path, "wb") as file:
            file.write(_FLO.pack(b"PIEH", width, height) + np.nan_to_num(value, nan=1e10).astype("<f4").tobytes())


def _read_flo(data: bytes) -> Float32[np.ndarray, "h w 2"]:
    if len(data) < _FLO.size or data[:4] != b"PIEH":
        raise DecodeError("no flow: it must be .flo or .npy")
    _, width, height = _FLO.unpack_from(data)
    if width < 1 or height < 1 or 8 * width * height > MAX_BYTES or len(data) - _FLO.size != 8 * width * height:
        raise DecodeError("a truncated .flo file")
    return np.frombuffer(data, "<f4", offset=_FLO.size).reshape(height, width, 2)


def _from_hsv(values: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.cvtColor(values, cv2.COLOR_HSV2RGB)

"""The geometry of one example, drawn once and applied to its image, maps and boxes alike.

A matrix (a, b, c, d, e, f) means that the result's point (x, y) shows the source's point (a x + b y
+ c, d x + e y + f). Both are in pixels from the corner; the centre of the first pixel is (0.5,
0.5).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Shaped

Size = tuple[int, int]  # height, width
Number = float | int
Box = tuple[Number, Number, Number, Number]  # left, top, right, bottom
Matrix = tuple[Number, Number, Number, Number, Number, Number]
MOST_CHANNELS = 4  # that OpenCV resizes at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """One step of a warp: the matrix of its points, and the function that moves pixels."""

    matrix: Matrix
    size: Size  # height and width of the result
    pixels: Callable[[Any], Any]  # function [h, w, c] -> [*size, c]


def size_of(pixels: np.ndarray) -> Size:
    """Height and width of an image or map [h, w, ...]."""
    return pixels.shape[0], pixels.shape[1]


def flip_matrix(width: int) -> Matrix:
    """The matrix that mirrors an image of this width left to right."""
    return (-1.0, 0.0, float(width), 0.0, 1.0, 0.0)


def box_matrix(box: Box, size: Size) -> Matrix:
    """The matrix that resizes the box (left, top, right, bottom) of an image to `size`."""
    left, top, right, bottom = box
    return ((right - left) / size[1], 0.0, float(left), 0.0, (bottom - top) / size[0], float(top))


@dataclasses.dataclass(frozen=True, eq=False)
class Warp:
    """A sequence of moves; an empty one changes nothing."""

    source: Size  # height and width of the source image
    moves: tuple[Move, ...] = ()

    @property
    def size(self) -> Size:
        """Height and width of the result."""
        return self.moves[-1].size if self.moves else self.source

    @functools.cached_property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """The matrix from points of the result to points of the source."""
        out = np.eye(3)
        for move in self.moves:
            out = out @ np.array((*move.matrix, 0.0, 0.0, 1.0)).reshape(3, 3)
        return out

    def then(self, move: Move) -> "Warp":
        """The warp followed by a move."""
        return Warp(self.source, (*self.moves, move))

    @functools.cached_property
    def inverse(self) -> "Warp":
        """The warp from the result to the source, for predictions about the result."""
        a, b, c, d, e, f = np.linalg.inv(self.matrix)[:2].ravel().tolist()
        pixels = functools.partial(resample, matrix=(a, b, c, d, e, f), size=self.source)
        return Warp(self.size, (Move(matrix=(a, b, c, d, e, f), size=self.source, pixels=pixels),))

    @property
    def width_scale(self) -> float:
        """Pixels of the result per pixel of the source along a row."""
        return 1 / float(np.hypot(*self.matrix[:2, 0]))

    @property
    def area_scale(self) -> float:
        """Pixels of the result per pixel of the source by area."""
        return 1 / abs(float(np.linalg.det(self.matrix[:2, :2])))

    def apply(self, pixels: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "_h _w c"]:
        """Moves the pixels of an image, with the interpolation of each move."""
        for move in self.moves:
            pixels = move.pixels(pixels)
        return pixels

    def nearest(self, values: Shaped[np.ndarray, "h w *c"], fill: Number) -> Shaped[np.ndarray, "_h _w *c"]:
        """Moves a map: each result pixel takes the value of the map pixel that its centre lies in.

        Outside the map it takes `fill`. Pixels that one move cuts off do not reappear in the next,
        as in the image. The map may be larger or smaller than the source image by a constant
        factor, and so is the result.
        """
        scale_y, scale_x = values.shape[0] / self.source[0], values.shape[1] / self.source[1]
        x = (np.arange(round(self.size[1] * scale_x)) + 0.5)[None] / scale_x
        y = (np.arange(round(self.size[0] * scale_y)) + 0.5)[:, None] / scale_y
        outside_x, outside_y = np.zeros_like(x, bool), np.zeros_like(y, bool)
        frames = [self.source, *(move.size for move in self.moves)][: len(self.moves)]
        for move, (height, width) in zip(reversed(self.moves), reversed(frames), strict=True):
            a, b, c, d, e, f = move.matrix
            x, y = (a * x + c if b == 0 else a * x + b * y + c), (e * y + f if d == 0 else d * x + e * y + f)
            outside_x, outside_y = outside_x | (x < 0) | (x >= width), outside_y | (y < 0) | (y >= height)
        rows, columns = _index(y * scale_y, values.shape[0]), _index(x * scale_x, values.shape[1])
        out = values[rows, columns]
        if outside_x.any() or outside_y.any():
            out[outside_x | outside_y] = fill
        return out

    def points(self, xy: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Moves points of the source to points of the result."""
        inverse = np.linalg.inv(self.matrix)
        return xy @ inverse[:2, :2].T + inverse[:2, 2]


def _index(position: np.ndarray, count: int) -> np.ndarray:
    """Index of the pixel that each position lies in, or of the nearest pixel."""
    return np.clip(np.floor(position).astype(np.int64), 0, count - 1)


def resample(image: Shaped[np.ndarray, "h w c"], *, matrix: Matrix, size: Size) -> Shaped[np.ndarray, "_h _w c"]:
    """Moves pixels by a matrix, with linear interpolation; borders repeat the nearest pixel."""
    if image.shape[2] > MOST_CHANNELS:
        return by_channels(functools.partial(resample, matrix=matrix, size=size), image)
    a, b, c, d, e, f = matrix
    centres = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])  # counted from pixel centres
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(image, centres, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out.reshape(*size, image.shape[2])


def by_channels(move: Callable[[Any], Any], image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "_h _w c"]:
    """Moves the pixels of some channels at a time, since OpenCV resizes no more than four."""
    parts = (image[..., i : i + MOST_CHANNELS] for i in range(0, image.shape[2], MOST_CHANNELS))
    return np.concatenate([move(np.ascontiguousarray(part)) for part in parts], -1)

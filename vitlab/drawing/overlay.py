"""Annotations over pictures: classes in colours, values as a colour map, boxes."""

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Integer, UInt8

_OPACITY = 0.55  # opacity of a class over the picture
_GOLDEN = 0.618034  # turns of the hue from one class to the next, which keeps any few of them apart
_VOID = (255, 255, 255)
_STOPS = ("#000004", "#420A68", "#932667", "#DD513A", "#FCA50A", "#FCFFA4")  # dark to bright, near the colour map "inferno"


@functools.cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """RGB of each class: 0 black, the others bright and apart, 255 (void) white."""
    colours = [(0.0, 0.0, 0.0)]
    colours += [colorsys.hsv_to_rgb((i * _GOLDEN) % 1, (0.9, 0.6, 0.75)[i % 3], (1.0, 0.85, 0.7)[i // 3 % 3]) for i in range(1, 255)]
    return np.array([*((255 * np.array(colours)).round().astype(int)), _VOID], np.uint8)


def overlay(picture: UInt8[np.ndarray, "h w 3"], indices: UInt8[np.ndarray, "h w"], *, void: int = 255) -> UInt8[np.ndarray, "h w 3"]:
    """The picture tinted by class; class 0 leaves it as it is, only darker, and void is hatched."""
    colours = palette()[indices].astype(np.float32)
    out = (picture * (1 - _OPACITY) + colours * _OPACITY).round().astype(np.uint8)
    stripes = np.add.outer(np.arange(picture.shape[0]), np.arange(picture.shape[1])) // 2 % 2 == 0
    out[(indices == void) & stripes] = _VOID
    return out


def colour_map(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """From the least value, dark, to the largest, bright; grey where there is none."""
    known = np.isfinite(values)
    out = np.full((*values.shape, 3), 128, np.uint8)
    if known.any():
        least, most = values[known].min(), values[known].max()
        place = (values[known] - least) / max(float(most - least), 1e-12) * (len(_STOPS) - 1)
        stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _STOPS], np.float64)
        colours = [np.interp(place, np.arange(len(_STOPS)), stops[:, channel]) for channel in range(3)]
        out[known] = np.stack(colours, -1).round().astype(np.uint8)
    return out


def draw_boxes(
    picture: UInt8[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "n 4"], labels: Sequence[int] | Integer[np.ndarray, " n"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Frames of one pixel, more in large pictures, in the colour of the class after the background;
    boxes are left, top, right, bottom.
    """
    out = np.ascontiguousarray(picture).copy()
    width = max(1, min(picture.shape[:2]) // 200)
    for (left, top, right, bottom), label in zip(boxes.round().astype(int).tolist(), labels, strict=True):
        colour = palette()[1 + int(label) % 254].tolist()
        cv2.rectangle(out, (left, top), (max(right - 1, left), max(bottom - 1, top)), colour, width)
    return out

"""Steps from a decoded image to the batch, as pure functions of arrays.

Functions of one image take (image, numpy Generator); functions of a whole batch take numbers drawn
before.
"""

import functools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Integer, Shaped
from PIL import Image

from vitlab.config import AugmentConfig
from vitlab.data.image_ops import fill_of
from vitlab.data.policies import Policy, color_jitter
from vitlab.data.warp import MOST_CHANNELS, Box, Move, Size, Warp, box_matrix, by_channels, flip_matrix, size_of

Pixels = Shaped[np.ndarray, "_h _w c"]  # a function may change height and width
Batch = Shaped[np.ndarray, "b h w c"]

_CV2 = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = ("bilinear", "bicubic")
FITS = ("crop", "stretch", "letterbox")  # ways in which evaluation brings an image to its size
_MOST_SMOOTHED = 2.0  # source pixels per pixel of the result; three taps are too few for more
_LEAST_TAP = 1 / 512  # a smaller tap rounds to zero in OpenCV's 8-bit kernels
_ATTEMPTS = 10  # attempts to place a random box, as in torchvision and timm


def augment(image: Pixels, rng: np.random.Generator, config: AugmentConfig, size: Size, policy: Policy | None) -> tuple[Pixels, Warp]:
    """Augments a training image: crops and resizes it to `size`, then policy and colour jitter.

    Args:
      image: The decoded image.
      rng: Generator of this image.
      config: The augmentation.
      size: Height and width of the result.
      policy: The policy that `config` names, or None.

    Returns:
      The image, and the moves of its pixels, which are applied to the other fields of the example.
    """
    interpolation = INTERPOLATIONS[rng.integers(2)] if config.interpolation == "random" else config.interpolation
    source = size_of(image)
    moves = [fit(source, rng, config, size, interpolation)]
    image = moves[0].pixels(image)
    if policy is not None:
        image = policy(image, rng, interpolation, moves)
    image = color_jitter(image, rng, config.color_jitter) if config.color_jitter else image
    return image, Warp(source, tuple(moves))


def fit(source: Size, rng: np.random.Generator, config: AugmentConfig, size: Size, interpolation: str) -> Move:
    """Draws the move that brings a training image of size `source` to `size`."""
    if config.crop == "random_resized":
        top, left, height, width = box = random_resized_box(source, rng, config.crop_scale, config.crop_ratio)
        matrix = box_matrix((left, top, left + width, top + height), size)
        return Move(matrix=matrix, size=size, pixels=functools.partial(_crop_and_resize, box=box, size=size, interpolation=interpolation))
    if config.crop in ("pad", "stretch"):
        return stretched(source, size, interpolation, smooth=False)
    if config.crop == "center":
        return centred(source, size, interpolation, 1.0)
    if config.crop == "letterbox":
        return letterboxed(source, size, interpolation, smooth=False)
    scale = _least_covering(source, size) if config.crop == "random" else _fitting(source, size) * rng.uniform(*config.jitter_scale)
    inner = _scaled(source, scale)
    spare = [side - own for side, own in zip(size, inner, strict=True)]  # negative where the image is larger and gets cut
    top, left = (int(rng.integers(min(room, 0), max(room, 0) + 1)) for room in spare)
    return _placed(source, inner, (top, left), size, functools.partial(resize, interpolation=interpolation))


def stretched(source: Size, size: Size, interpolation: str, *, smooth: bool) -> Move:
    """Resizes the whole image without keeping its proportions.

    With `smooth` it resizes as Pillow does, else as in training (see `resize`).
    """
    pixels = functools.partial(_resize_with_pillow if smooth else resize, size=size, interpolation=interpolation)
    return Move(matrix=box_matrix((0, 0, source[1], source[0]), size), size=size, pixels=pixels)


def letterboxed(source: Size, size: Size, interpolation: str, *, smooth: bool) -> Move:
    """Resizes the whole image in its proportions, centred between bars of a mean colour.

    `smooth` as in `stretched`.
    """
    inner = _scaled(source, _fitting(source, size))
    corner = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    shrink = functools.partial(_resize_with_pillow if smooth else resize, interpolation=interpolation)
    return _placed(source, inner, corner, size, shrink)


def centred(source: Size, size: Size, interpolation: str, crop_fraction: float) -> Move:
    """The evaluation transform as a move; see `resize_and_center_crop`."""
    height, width = source
    covered = [math.floor(side / crop_fraction) for side in size]
    if covered[0] * width >= covered[1] * height:  # the height limits the scale
        resized = (covered[0], max(size[1], int(covered[0] * width / height)))
    else:
        resized = (max(size[0], int(covered[1] * height / width)), covered[1])
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    if resized == (height, width):
        box = (left, top, left + size[1], top + size[0])
        return Move(matrix=box_matrix(box, size), size=size, pixels=functools.partial(crop, box=(top, left, *size)))
    y, x = height / resized[0], width / resized[1]  # source pixels per resized pixel
    box = (left * x, top * y, min((left + size[1]) * x, width), min((top + size[0]) * y, height))
    pixels = functools.partial(_resize_with_pillow, size=size, interpolation=interpolation, box=box)
    return Move(matrix=box_matrix(box, size), size=size, pixels=pixels)


def evaluation_warp(source: Size, size: Size, interpolation: str, crop_fraction: float, fit: str = "crop") -> Warp:
    """The warp of the evaluation transform, for an image of size `source`.

    `fit` is one of `FITS`.
    """
    if fit == "crop":
        return Warp(source, (centred(source, size, interpolation, crop_fraction),))
    move = stretched if fit == "stretch" else letterboxed
    return Warp(source, (move(source, size, interpolation, smooth=True),))


def padded(size: Size, corner: Sequence[int], pad: int) -> Move:
    """The move of `pad_crop` for the window at `corner` (top, left) of the padded image."""
    left, top = int(corner[1]) - pad, int(corner[0]) - pad
    pixels = lambda image: pad_crop(image[None], np.array([corner]), pad)[0]  # noqa: E731
    return Move(matrix=box_matrix((left, top, left + size[1], top + size[0]), size), size=size, pixels=pixels)


def flipped_left_to_right(size: Size) -> Move:
    """The mirror move: left to right."""
    return Move(matrix=flip_matrix(size[1]), size=size, pixels=flip_rows)


def _fitting(source: Size, size: Size) -> float:
    """Largest scale at which the whole image fits into `size`."""
    return min(size[0] / source[0], size[1] / source[1])


def _least_covering(source: Size, size: Size) -> float:
    """Smallest scale, at least 1, at which the image covers `size`."""
    return max(1.0, size[0] / source[0], size[1] / source[1])


def _scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _placed(source: Size, inner: Size, corner: tuple[int, int], size: Size, shrink: Callable[..., Pixels]) -> Move:
    """Resizes an image to `inner` and places it on a canvas of size `size` with a mean colour.

    Args:
      source: Height and width of the image.
      inner: Height and width after resizing.
      corner: Top and left of the resized image on the canvas; negative values cut it.
      size: Height and width of the canvas.
      shrink: Resizing function of (image, size=inner).
    """
    top, left = corner
    y, x = source[0] / inner[0], source[1] / inner[1]  # source pixels per pixel of the result
    matrix = box_matrix((-left * x, -top * y, (size[1] - left) * x, (size[0] - top) * y), size)
    pixels = functools.partial(_place, inner=inner, corner=corner, size=size, shrink=shrink)
    return Move(matrix=matrix, size=size, pixels=pixels)


def _place(image: Pixels, *, inner: Size, corner: tuple[int, int], size: Size, shrink: Callable[..., Pixels]) -> Pixels:
    out = np.empty((*size, image.shape[2]), image.dtype)
    out[...] = fill_of(image)
    top, left = corner
    part = shrink(image, size=inner)[max(-top, 0) : size[0] - top, max(-left, 0) : size[1] - left]
    out[max(top, 0) :, max(left, 0) :][: part.shape[0], : part.shape[1]] = part
    return out


def _crop_and_resize(image: Pixels, *, box: tuple[int, int, int, int], size: Size, interpolation: str) -> Pixels:
    return resize(crop(image, box), size, interpolation)


def random_resized_box(
    size: Size, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws the box of RandomResizedCrop (GoogLeNet, arXiv:1409.4842) as torchvision and timm do.

    The area is uniform in `scale`, the aspect ratio log-uniform in `ratio` and the position
    uniform. After ten failed attempts the box is the largest central one whose ratio is in range.

    Args:
      size: Height and width of the image.
      rng: Generator of this image.
      scale: Range of the box's fraction of the area.
      ratio: Range of the box's width over its height.

    Returns:
      Top, left, height, width.
    """
    height, width = size
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    w, h = max(w, 1), max(h, 1)
    return (height - h) // 2, (width - w) // 2, h, w


def crop(image: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """The view of an image at the box (top, left, height, width)."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resize(image: Pixels, size: Size, interpolation: str) -> Pixels:
    """Resizes for training, with antialiasing.

    The result is within 1 of 255 on average of Pillow's, in a fifth of the time. An image that
    shrinks by more than 2 on an axis is averaged over areas first, otherwise smoothed with three
    taps.
    """
    channels = image.shape[2]
    if channels > MOST_CHANNELS:
        return by_channels(functools.partial(resize, size=size, interpolation=interpolation), image)
    scales = [image.shape[axis] / size[axis] for axis in (0, 1)]  # source pixels per pixel of the result
    if max(scales) > _MOST_SMOOTHED:
        shrunk = (min(size[0], image.shape[0]), min(size[1], image.shape[1]))
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    elif max(scales) > 1:
        image = _smooth(image, scales)
    if image.shape[:2] != size:
        image = cv2.resize(image, size[::-1], interpolation=_CV2[interpolation])
    return image.reshape(*size, channels)


def _smooth(image: Pixels, scales: Sequence[float]) -> np.ndarray:
    """Smooths each axis that is about to shrink by its scale.

    The kernel [a, 1 - 2a, a] has the variance 2a = (scale**2 - 1) / 6. Pillow stretches the
    triangle of linear interpolation by the scale, which adds the same variance. OpenCV computes
    such kernels as Gaussians, fastest with three taps.
    """
    sigmas = []
    for scale in scales:
        tap = (scale**2 - 1) / 12
        sigmas.append(math.sqrt(-0.5 / math.log(tap / (1 - 2 * tap))) if tap > _LEAST_TAP else 0.0)
    y, x = sigmas
    if not x and not y:
        return image
    return cv2.GaussianBlur(image, (3 if x else 1, 3 if y else 1), sigmaX=x, sigmaY=y, borderType=cv2.BORDER_REPLICATE)


def draw_corners(rng: np.random.Generator, count: int, pad: int) -> Integer[np.ndarray, "count 2"]:
    """Draws top and left of `count` windows for `pad_crop`, uniform in [0, 2 pad]."""
    return rng.integers(2 * pad + 1, size=(count, 2))


def pad_crop(images: Batch, corners: Integer[np.ndarray, "b 2"], pad: int) -> Batch:
    """Pads with black and takes windows of the original size (He et al., arXiv:1512.03385, 4.2).

    Args:
      images: The batch.
      corners: Top and left of each window in the padded image.
      pad: Pixels added on each side.
    """
    b, h, w, c = images.shape
    padded = np.zeros((b, h + 2 * pad, w + 2 * pad, c), images.dtype)
    padded[:, pad : pad + h, pad : pad + w] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded.reshape(b, h + 2 * pad, -1), (h, w * c), axis=(1, 2))  # type: ignore[call-overload]
    return windows[np.arange(b), corners[:, 0], corners[:, 1] * c].reshape(b, h, w, c)


def draw_flips(rng: np.random.Generator, count: int) -> Bool[np.ndarray, " count"]:
    """Draws which of `count` images are flipped, each with probability 1/2."""
    return rng.random(count) < 0.5


def flip(images: Batch, flipped: Bool[np.ndarray, " b"]) -> Batch:
    """Mirrors the images where `flipped` is true, left to right."""
    _, h, w, c = images.shape
    out, chosen = images.copy(), images[flipped]
    if len(chosen):
        out[flipped] = flip_rows(chosen.reshape(-1, w, c)).reshape(-1, h, w, c)
    return out


def flip_rows(image: Pixels) -> Pixels:
    """Mirrors an image left to right; OpenCV is twenty times as fast as copying numpy's view."""
    return cv2.flip(image, 1).reshape(image.shape)


def resize_and_center_crop(image: Pixels, size: Size, interpolation: str, crop_fraction: float) -> Pixels:
    """The evaluation transform: resizes with Pillow's antialiasing, then crops the centre.

    The image is scaled until it just covers floor(size / crop_fraction), which for a square is
    timm's rule; only the cropped part is computed.

    Args:
      image: The decoded image.
      size: Height and width of the result.
      interpolation: "bilinear" or "bicubic".
      crop_fraction: Side of the result over side of the resized image, in (0, 1].
    """
    return centred(size_of(image), size, interpolation, crop_fraction).pixels(image)


def _resize_with_pillow(image: Pixels, *, size: Size, interpolation: str, box: Box | None = None) -> Pixels:
    """Resizes the box (left, top, right, bottom) of an image; None is the whole image."""
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        source = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        return np.array(source.resize((size[1], size[0]), _PILLOW[interpolation], box=box)).reshape(*size, image.shape[2])
    channels = (Image.fromarray(image[:, :, i].astype(np.float32)) for i in range(image.shape[2]))
    out = np.stack([np.asarray(channel.resize((size[1], size[0]), _PILLOW[interpolation], box=box)) for channel in channels], -1)
    return out if image.dtype.kind == "f" else np.round(out).clip(0, np.iinfo(image.dtype).max).astype(image.dtype)

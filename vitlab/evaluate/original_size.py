"""Segmentation scored at the pictures' own size, by sliding windows, as in mmsegmentation.

A picture is resized so that its short side is the model's; logits of overlapping windows are
averaged and resized to the picture's own size. With several sizes, or a mirrored copy,
probabilities are averaged, not logits (mmsegmentation's `aug_test`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from vitlab.data import Source
from vitlab.data.augment import evaluation_warp
from vitlab.data.bad_images import BadImagesError
from vitlab.data.decode import DecodeError, decoder
from vitlab.data.fields import decode_example, fields_of, with_images, with_names
from vitlab.data.warp import size_of
from vitlab.layers.resize import resize_bilinear
from vitlab.metrics.segmentation import pixel_counts
from vitlab.runs.trained import Trained
from vitlab.tasks.segmentation import scores_of

_OVERLAP = 1 / 3  # overlap of neighbouring windows; the stride is two thirds of the window
Logits = Callable[[Shaped[np.ndarray, "n h w c"]], Float[np.ndarray, "n h w k"]]


def evaluate_at_original_size(
    trained: Trained,
    source: Source,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """The scores of `vitlab.tasks.segmentation` over a split, at each picture's own size.

    Args:
      trained: A model that was trained for segmentation.
      source: The split, whose pictures may differ in size.
      scales: Sizes of the picture, relative to the one whose short side is the model's.
      flip: Whether each size is also scored mirrored left to right.
      should_stop: Called between pictures; True ends the evaluation.

    Returns:
      The scores, "images", and the settings "window" and "stride" (height, width), "scales" and
      "flip"; None when told to stop.

    Raises:
      BadImagesError: A picture or its annotation cannot be decoded.
    """
    window = trained.model.preprocessing.image_size
    stride = tuple(max(1, round(side * (1 - _OVERLAP))) for side in window)
    kinds = with_names(with_images(fields_of(source), trained.channels, decoder(trained.experiment.data)), source.class_names)
    run = jax.jit(lambda weights, images: trained.model.run(weights, {"image": images})[0]["logits"])

    def logits(windows: np.ndarray) -> np.ndarray:
        return np.asarray(run(trained.weights, windows))

    num_classes = trained.experiment.model.num_classes or len(trained.class_names)
    counts = np.zeros((3, num_classes), np.int64)
    for index in range(len(source)):
        if should_stop():
            return None
        try:
            example = decode_example(source[index], kinds)
        except (DecodeError, OSError) as error:
            raise BadImagesError(f"{source.name_of(index)} cannot be used: {error}") from error
        scores = picture_scores(logits, example["image"], window=window, stride=stride, scales=scales, flip=flip)
        counts += pixel_counts(scores.argmax(-1), example["segmentation"], num_classes=num_classes)
    done = {"window": list(window), "stride": list(stride), "scales": list(scales), "flip": flip}
    return {**scores_of(counts), "images": len(source), **done}


def picture_scores(
    logits: Logits,
    pixels: Shaped[np.ndarray, "h w c"],
    *,
    window: tuple[int, int],
    stride: tuple[int, ...],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Float[np.ndarray, "h w k"]:
    """Logits of a picture at its own size; with several views the mean of their probabilities."""
    views = []
    for scale in scales:
        for mirrored in (False, True)[: 1 + flip]:
            side = scale * min(window) / min(pixels.shape[:2])
            height, width = (max(1, int(n * side + 0.5)) for n in size_of(pixels))
            view = evaluation_warp(size_of(pixels), (height, width), "bilinear", 1.0, "stretch").apply(pixels)
            found = slide(logits, view[:, ::-1] if mirrored else view, window=window, stride=stride)
            found = np.asarray(resize_bilinear(jnp.asarray(found)[None], size_of(pixels))[0])
            views.append(found[:, ::-1] if mirrored else found)
    if len(views) == 1:
        return views[0]
    return np.mean([np.asarray(jax.nn.softmax(view)) for view in views], axis=0)


def slide(
    logits: Logits, pixels: Shaped[np.ndarray, "h w c"], *, window: tuple[int, int], stride: tuple[int, ...]
) -> Float[np.ndarray, "h w k"]:
    """The mean of the logits of all windows over a picture.

    A picture smaller than the window is padded by repeating its border.
    """
    height, width = pixels.shape[:2]
    missing = [max(0, least - side) for least, side in zip(window, (height, width), strict=True)]
    padded = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    corners = list(_corners(padded.shape[:2], window, stride))
    found = logits(np.stack([padded[y : y + window[0], x : x + window[1]] for y, x in corners]))
    total = np.zeros((*padded.shape[:2], found.shape[-1]), np.float32)
    count = np.zeros((*padded.shape[:2], 1), np.float32)
    for (y, x), part in zip(corners, found, strict=True):
        total[y : y + window[0], x : x + window[1]] += part
        count[y : y + window[0], x : x + window[1]] += 1
    return (total / count)[:height, :width]


def _corners(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Top and left of each window; the last windows are moved back inside the picture."""
    starts = []
    for side, span, step in zip(size, window, stride, strict=True):
        count = max(0, -(-(side - span) // step)) + 1
        starts.append([max(0, min(i * step + span, side) - span) for i in range(count)])
    return ((y, x) for y in starts[0] for x in starts[1])

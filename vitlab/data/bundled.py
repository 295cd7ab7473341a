"""The bundled data set: 12,000 images of Fashion-MNIST; see bundled/ORIGIN.md."""

import importlib.resources

import numpy as np

from vitlab.config import ConfigError, near_misses
from vitlab.data.arrays import ArraySource
from vitlab.data.splits import split_name, split_range

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPLITS = ("train", "test")


def open_bundled(split: str) -> ArraySource:
    """Opens "train" (10,000 images) or "test" (2,000), or a slice of them; grey, 28 x 28 pixels.

    Raises:
      ConfigError: There is no such split, or the slice is empty.
    """
    name = split_name(split)
    if name not in SPLITS:
        raise ConfigError(f'the bundled data has no split "{name}"; {near_misses(name, SPLITS)}')
    file = importlib.resources.files("vitlab").joinpath("data", "bundled", "fashion_mnist.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    part = split_range(split, len(images))
    return ArraySource(images=images[part, :, :, None], labels=labels[part].astype(np.int32), class_names=CLASS_NAMES, split=name)

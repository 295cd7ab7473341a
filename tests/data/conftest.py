"""Small images to read: class-per-folder trees of smooth noise."""

import pathlib

import numpy as np
import pytest
from PIL import Image


def smooth(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Returns a random image without sharp edges, which JPEG and resizing keep recognisable."""
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse if channels == 3 else coarse[..., 0]).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


def write_tree(root: pathlib.Path, classes=("ant", "bee"), per_class: int = 6, size=(20, 26)) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(smooth(rng, *size)).save(root / name / f"{i}.png")


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    write_tree(tmp_path / "images")
    return tmp_path / "images"

"""Preparation of images for a model."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preparation of the images of a variant, as in its published recipe."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, of pixels in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_fraction: float = 0.9  # share of the resized short side that is kept by the evaluation's centre crop
    image_size: tuple[int, int] = (224, 224)  # pixels, height and width

    def for_channels(self, in_channels: int) -> "Preprocessing":
        """The preparation for another number of channels: each gets the average mean and deviation."""
        if in_channels == len(self.mean):
            return self
        mean, std = (sum(v) / len(v) for v in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * in_channels, std=(std,) * in_channels)

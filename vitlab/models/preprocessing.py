"""Preparation of images for a model."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preparation of a variant's images, as in its published recipe."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # mean of each channel, of pixels over max_value
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_value: float = 255.0  # sample value that counts as 1
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_fraction: float = 0.9  # share of the resized short side that the evaluation's centre crop covers; not with `squash`
    resize: Literal["crop", "squash"] = "crop"  # squash: the whole image becomes the size, whatever its proportions
    image_size: tuple[int, int] = (224, 224)  # height and width, in pixels

    def for_channels(self, in_channels: int) -> "Preprocessing":
        """Returns the preparation for another number of channels.

        Each of the new channels gets the average of the means and of the deviations.
        """
        if in_channels == len(self.mean):
            return self
        mean, std = (sum(v) / len(v) for v in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * in_channels, std=(std,) * in_channels)

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...], max_value: float | None) -> "Preprocessing":
        """Returns the preparation with another mean, deviation and unit, where they are given.

        Raises:
          ValueError: The mean or the deviation has neither one number nor one for each channel.
        """
        channels, given = len(self.mean), {}
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (0, 1, channels):
                raise ValueError(f"{name}={values} must have one number, or one for each of the {channels} channels")
            if values:
                given[name] = values * channels if len(values) == 1 else values
        return dataclasses.replace(self, **given, **({} if max_value is None else {"max_value": max_value}))

"""Description beside an exported model: input, output, and how an image becomes the input."""

import json
from typing import Any

from vitlab.runs.trained import Trained

_RESIZE = (
    "Scale the image, with antialiasing, until it just covers floor(side / crop_fraction) on both sides, "
    "then cut out its centre of image_size."
)


def describe(trained: Trained, **more: Any) -> dict[str, Any]:
    """Returns the preprocessing, classes and origin of a model as JSON types.

    Args:
      trained: A model with its weights.
      **more: Further entries, such as the format of the file.
    """
    recipe = trained.model.preprocessing
    own_crop = trained.experiment.augment.crop == "random_resized"
    return {
        **trained.origin,
        "image_size": list(recipe.image_size),
        "channels": trained.channels,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
        "interpolation": recipe.interpolation,
        "crop_fraction": recipe.crop_fraction if own_crop else 1.0,
        "resize": _RESIZE,
        "classes": list(trained.class_names),
        **more,
    }


def as_metadata(description: dict[str, Any]) -> dict[str, str]:
    """Returns the description as text entries of a header."""
    return {"vitlab": json.dumps(description)}

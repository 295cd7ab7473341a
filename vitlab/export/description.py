"""Description beside an exported model: input, output, and how an image becomes the input."""

import json
from typing import Any

from vitlab.runs.trained import Trained, eval_fit

_RESIZE = {
    "crop": "Scale the image, with antialiasing, until it just covers floor(side / crop_fraction) on both sides, "
    "then cut out its centre of image_size.",
    "stretch": "Scale the whole image, with antialiasing, to image_size, whatever its proportions.",
}


def describe(trained: Trained, **more: Any) -> dict[str, Any]:
    """Returns the preprocessing, classes and origin of a model as JSON types.

    Args:
      trained: A model with its weights.
      **more: Further entries, such as the format of the file.
    """
    recipe = trained.model.preprocessing
    fit, crop_fraction = eval_fit(trained.experiment, recipe)
    return {
        **trained.origin,
        "image_size": list(recipe.image_size),
        "channels": trained.channels,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
        "interpolation": recipe.interpolation,
        "crop_fraction": 1.0 if fit == "stretch" else crop_fraction,
        "resize": _RESIZE[fit],
        "classes": list(trained.class_names),
        **more,
    }


def as_metadata(description: dict[str, Any]) -> dict[str, str]:
    """Returns the description as text entries of a header."""
    return {"vitlab": json.dumps(description)}

"""Models of the zoo with published weights."""

import pathlib
from typing import Any

from vitlab.models import registry
from vitlab.models.catalogue import address_of, preprocessing_of
from vitlab.models.registry import VisionModel, model_config
from vitlab.weights.load import load_weights


def create_model(name: str, *, weights: str | pathlib.Path | None = None, **options: Any) -> VisionModel[Any]:
    """Builds a variant of the zoo, as `vitlab.models.registry.create_model` does, with published
    weights if asked for.

    Args:
      name: One of `list_models()`, or a variant of one's own.
      weights: A short name of the catalogue, `python -m vitlab.models --weights`, which is fetched
        with the extra `hub` and kept in its local cache; or a file, folder or address, as
        `vitlab.load_weights` takes it. None: initial values.
      **options: `num_classes`, `image_size`, `in_channels`, `drop_path_rate`, `dtype`, `rngs` and
        the family's fields. With another `num_classes` than the file's the head begins anew.

    Returns:
      A model; `model(images)` maps [b, height, width, channels] to logits [b, num_classes].

    Raises:
      ValueError: As the registry's; or the weights do not fit.
      FileNotFoundError, ImportError, OSError: The weights are not there, the extra is missing, or
        the hub cannot be reached; the message has the remedy.
    """
    if weights is None:
        return registry.create_model(name, **options)
    source = address_of(name, str(weights))
    options.setdefault("preprocessing", preprocessing_of(name, str(weights), model_config(name).preprocessing))
    model = registry.create_model(name, **options)
    load_weights(model, source, head="load" if options.get("num_classes") is None else "fit")
    return model

"""The labels of a whole source, without reading its images."""

from typing import Any

import numpy as np

from vitlab.config import ConfigError
from vitlab.data.mixture import MixedSource


def labels_of(source: Any, what: str) -> np.ndarray:
    """Labels, int [n], of all images in their order.

    Args:
      source: Images in memory, in folders or in a CSV; other sources would have to be read whole.
      what: The setting that needs the labels, as the beginning of an error.

    Raises:
      ConfigError: The source does not know its labels.
    """
    if isinstance(source, MixedSource):
        return np.concatenate([labels_of(part, what) for part in source.parts])
    labels = getattr(source, "labels", None)
    if labels is None:
        raise ConfigError(
            f'{what} needs the labels of all images, which only data.source="image_folder" (a folder or a CSV) and "bundled" know '
            "before the images are read"
        )
    return np.asarray(labels)

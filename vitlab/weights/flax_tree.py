"""Names of a Flax tree, as big_vision and vision_transformer write them, in the form of all
others.
"""

import re
from collections.abc import Mapping

import numpy as np

_STACKED = re.compile(r"(^|/)encoderblock/")  # blocks that ran as a scan: one tensor for all, a block a row


def dotted(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Tensors by names with "." for "/", and those of stacked blocks one by one; other tensors as
    they are.

    Raises:
      ValueError: A stacked tensor has no rows.
    """
    if not any("/" in name for name in tensors):
        return tensors
    out = {}
    for name, value in tensors.items():
        if not _STACKED.search(name):
            out[name.replace("/", ".")] = value
            continue
        if value.ndim == 0:
            raise ValueError(f"{name} must have a row for each block, and is a single number")
        for i, row in enumerate(value):
            out[_STACKED.sub(rf"\g<1>encoderblock_{i}/", name).replace("/", ".")] = row
    return out

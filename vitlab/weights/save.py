"""Writes models as checkpoints in names and layouts of timm or the authors.

The name maps are read backwards.
"""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
from flax import nnx

from vitlab.files import write_atomically
from vitlab.weights.fit import to_torch_layout
from vitlab.weights.load import parameters
from vitlab.weights.naming import foreign_names, foreign_parts, maps_of
from vitlab.weights.reading import grids_metadata


def to_foreign(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters and statistics of a model in the names and layouts of timm or the authors.

    Arrays are float32. Loading the result with `load_weights` restores the model. Buffers that
    follow from the architecture are left out.

    Raises:
      ValueError: A parameter has no foreign name.
    """
    targets = parameters(model)
    out = {}
    for name, parts in foreign_parts(targets, maps_of(model)).items():
        whole = to_torch_layout(name, np.asarray(targets[name][...], np.float32))
        for foreign, layouts in parts:
            value = whole
            for layout in layouts:
                value = layout.inverse(value)
            out[foreign] = np.array(value, order="C")  # unlike ascontiguousarray, it keeps a scalar without axes
    return out


def save_weights(model: nnx.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes `to_foreign(model)` to a safetensors file, which appears whole or not at all.

    The header states the grids of position embeddings, so that a grid that is not square can be
    read back.

    Args:
      model: A model of `create_model`.
      path: The file, replaced if it exists; its folder must exist.
      metadata: Further entries of the header.

    Raises:
      ValueError: See `to_foreign`; or a parameter is not finite.
      OSError: The file cannot be written.
    """
    from safetensors.numpy import save

    tensors = to_foreign(model)
    if bad := [name for name, value in tensors.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{len(bad)} tensors are not finite, first {bad[0]}: such weights are of no use")
    names = foreign_names(parameters(model), maps_of(model))
    grids = {names[n][0]: v.get_metadata()["grid"] for n, v in parameters(model).items() if "grid" in v.get_metadata()}
    write_atomically(pathlib.Path(path), save(tensors, {"format": "pt", **grids_metadata(grids), **(metadata or {})}))

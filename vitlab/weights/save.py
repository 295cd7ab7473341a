"""Models as checkpoints in the names and layouts of timm or of the authors: the name maps read backwards."""

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
    """The parameters and statistics of a model as timm's, or its authors', code has them: names, axes, float32.

    Loading the result with `load_weights` gives the same model. Buffers that follow from the architecture are not in it.

    Raises:
      ValueError: A parameter has no name in such checkpoints.
    """
    targets = parameters(model)
    out = {}
    for name, parts in foreign_parts(targets, maps_of(model)).items():
        whole = to_torch_layout(name, np.asarray(targets[name][...], np.float32))
        for foreign, layouts in parts:
            value = whole
            for layout in layouts:
                value = layout.inverse(value)
            out[foreign] = np.array(value, order="C")  # ascontiguousarray gives a scalar an axis
    return out


def save_weights(model: nnx.Module, path: pathlib.Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `to_foreign(model)` to a safetensors file, which is there whole or not at all.

    The header declares the grids of position embeddings, so that a grid that is not square is read back as it is.

    Args:
      model: From `create_model`.
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
    write_atomically(path, save(tensors, {"format": "pt", **grids_metadata(grids), **(metadata or {})}))

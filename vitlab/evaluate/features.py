"""Pooled features of all images of a split, which probes learn from."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vitlab.data import Source
from vitlab.evaluate.split import open_batches
from vitlab.functional import Weights
from vitlab.parallel.mesh import replicated, shard_batch
from vitlab.runs.trained import Trained


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features and labels, image by image."""

    values: Float[np.ndarray, "n d"]  # may lie in a file
    labels: Int[np.ndarray, " n"]


def extract(
    trained: Trained,
    source: Source,
    *,
    mesh: Mesh,
    batch_size: int,
    folder: pathlib.Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Features | None:
    """Runs the model over a split, with the centre crop of evaluation.

    Only a batch is in memory: the features lie in an unnamed temporary file, 4 n d bytes, which
    vanishes with the result.

    Args:
      trained: A model that gives pooled features, from `without_head`.
      source: The images; images that cannot be decoded are left out.
      mesh: Devices over which each batch is split.
      batch_size: Images that go through the model at once.
      folder: Folder of the file; None for the system's temporary folder.
      should_stop: Called between batches; True ends the extraction.

    Returns:
      The features in the order of the source, or None when told to stop.
    """
    compiled = jax.jit(lambda weights, images: trained.model.apply(weights, images)[0], out_shardings=replicated(mesh))
    batches = open_batches(trained.model, source, trained.experiment, channels=trained.channels, batch_size=batch_size, mesh=mesh)
    with batches, tempfile.TemporaryFile(dir=folder) as file:
        values, labels, count = None, np.zeros(len(source), np.int64), 0
        for batch in batches:
            if should_stop():
                return None
            found = np.asarray(_in_mesh(compiled, mesh, trained.weights, shard_batch({"image": batch["image"]}, mesh)["image"]))
            if values is None:
                values = np.memmap(file, np.float32, "w+", shape=(len(source), found.shape[-1]))
            kept = found[batch["mask"]]
            values[count : count + len(kept)] = kept
            labels[count : count + len(kept)] = batch["label"][batch["mask"]]
            count += len(kept)
    return Features(values=np.zeros((0, 1), np.float32) if values is None else values[:count], labels=labels[:count])


def _in_mesh(compiled: Callable[..., Array], mesh: Mesh, weights: Weights, images: Array) -> Array:
    with jax.set_mesh(mesh):  # kernels are partitioned over its devices
        return compiled(weights, images)

"""Pooled features of all images of a split, which probes learn from; kept on disk where asked
for.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import uuid
from collections.abc import Callable
from typing import IO

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vitlab.config import ConfigError
from vitlab.data import Source
from vitlab.evaluate.split import open_batches
from vitlab.files import write_atomically
from vitlab.functional import Weights
from vitlab.parallel.mesh import replicated, shard_batch
from vitlab.runs.trained import Trained, eval_fit
from vitlab.tree import leaf_names

logger = logging.getLogger(__name__)

_FORM = 1  # form of the kept files, a part of their key


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
    cache: pathlib.Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Features | None:
    """Runs the model over a split, with the preparation of evaluation, or takes what such a run has
    kept.

    Only a batch is in memory: the features lie in a file, 4 n d bytes, of which the parts that are
    used are read.

    Args:
      trained: A model that gives pooled features, from `without_head`.
      source: The images; images that cannot be decoded are left out.
      mesh: Devices over which each batch is split.
      batch_size: Images that go through the model at once.
      cache: Folder in which the features are kept. None: an unnamed file in the system's temporary
        folder, which vanishes with the result.
      should_stop: Called between batches; True ends the extraction.

    Returns:
      The features in the order of the source, or None when told to stop.

    Raises:
      ConfigError: The folder cannot be written to, or what it holds is damaged.
    """
    options = {"mesh": mesh, "batch_size": batch_size, "should_stop": should_stop}
    if cache is None:
        with tempfile.TemporaryFile() as file:
            return _run(trained, source, file, **options)
    key = features_key(trained, source)
    if (cache / f"{key}.json").is_file():
        logger.info("features of %s are those of %s", source.name_of(0) if len(source) else "no image", cache / key)
        return _kept(cache, key)
    part = cache / f"{key}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with part.open("w+b") as file:
            found = _run(trained, source, file, **options)
            if found is None:
                return None
            file.truncate(found.values.nbytes)
        _keep(cache, key, part, found)
    except OSError as error:
        raise ConfigError(f"--cache={cache} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return _kept(cache, key)


def features_key(trained: Trained, source: Source) -> str:
    """A name of files that changes with all that the features depend on: weights, network, data,
    and how an image is prepared.
    """
    recipe, data = trained.model.preprocessing, trained.experiment.data
    parts = {
        "form": _FORM,
        "data": source.fingerprint,
        "network": str(trained.model.graphdef),
        "preparation": [repr(recipe), *eval_fit(trained.experiment, recipe), trained.channels, repr(data.background)],
    }
    digest = hashlib.sha256(json.dumps(parts).encode())
    for name, value in zip(leaf_names(trained.weights), jax.tree.leaves(trained.weights), strict=True):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()[:32]


def _keep(cache: pathlib.Path, key: str, part: pathlib.Path, features: Features) -> None:
    """Gives the files their names, the one that says what they hold last."""
    os.replace(part, cache / f"{key}.f32")
    rows, width = features.values.shape
    write_atomically(cache / f"{key}.json", json.dumps({"rows": rows, "width": width, "labels": features.labels.tolist()}))


def _kept(cache: pathlib.Path, key: str) -> Features:
    """The features of a file, read where they are used.

    Raises:
      ConfigError: They are not what they are said to be.
    """
    try:
        kept = json.loads((cache / f"{key}.json").read_bytes())
        shape, labels = (int(kept["rows"]), int(kept["width"])), np.asarray(kept["labels"], np.int64)
        if len(labels) != shape[0] or (cache / f"{key}.f32").stat().st_size != 4 * shape[0] * shape[1]:
            raise ValueError("its size is another than it says")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{cache / key}.*, kept features, are damaged ({error}): delete them") from error
    if not shape[0]:
        return Features(values=np.zeros(shape, np.float32), labels=labels)
    return Features(values=np.memmap(cache / f"{key}.f32", np.float32, "r", shape=shape), labels=labels)


def _run(
    trained: Trained, source: Source, file: IO[bytes], *, mesh: Mesh, batch_size: int, should_stop: Callable[[], bool]
) -> Features | None:
    """The features of a split, in a file."""
    compiled = jax.jit(lambda weights, images: trained.model.apply(weights, images)[0], out_shardings=replicated(mesh))
    batches = open_batches(trained.model, source, trained.experiment, channels=trained.channels, batch_size=batch_size, mesh=mesh)
    with batches:
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
        if values is not None:
            values.flush()
    return Features(values=np.zeros((0, 1), np.float32) if values is None else values[:count], labels=labels[:count])


def _in_mesh(compiled: Callable[..., Array], mesh: Mesh, weights: Weights, images: Array) -> Array:
    with jax.set_mesh(mesh):  # kernels are partitioned over its devices
        return compiled(weights, images)

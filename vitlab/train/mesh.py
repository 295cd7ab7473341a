"""All devices of this process as one mesh with the axis `data`, over which a batch is split."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vitlab.config import ConfigError


def make_mesh() -> Mesh:
    """One axis, `data`, over all local devices."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Sends a batch of numpy arrays to the devices, each its rows."""
    return {k: jax.make_array_from_process_local_data(batch_sharding(mesh), v) for k, v in batch.items()}


def check_divides(name: str, batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be split evenly.

    Raises:
      ConfigError: The message has a batch size that can.
    """
    count = mesh.size
    if batch_size % count:
        raise ConfigError(f"{name}={batch_size} must be a multiple of the {count} devices, such as {max(batch_size // count, 1) * count}")

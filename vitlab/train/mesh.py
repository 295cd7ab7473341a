"""All devices of all processes as one mesh: a batch is split over its axes `data` and `fsdp`, large parameters over `fsdp`."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vitlab.config import ConfigError

FSDP_FLOOR = 2**16  # elements; a smaller array costs more to gather than to keep everywhere


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Axes `data` and `fsdp` over these devices; over all of all processes by default.

    Raises:
      ConfigError: The devices are not a multiple of `fsdp`; or a process has more of them than another, so that a batch cannot be
        split evenly over the processes.
    """
    if devices is None:
        devices = jax.devices()
        counts = collections.Counter(device.process_index for device in devices)
        if len(set(counts.values())) > 1:
            raise ConfigError(f"every process must have the same number of devices; they have {sorted(counts.values())}")
    if len(devices) % fsdp:
        raise ConfigError(f"mesh.fsdp={fsdp} must divide the {len(devices)} devices")
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Each array of at least `FSDP_FLOOR` elements is split along its longest dimension that `fsdp` divides; others are everywhere.

    Optimizer state follows its parameters, whose shapes it has.
    """

    def sharding(x: Any) -> NamedSharding:
        count = mesh.shape["fsdp"]
        fitting = [i for i, n in enumerate(x.shape) if n % count == 0]
        if count == 1 or x.size < FSDP_FLOOR or not fitting:
            return replicated(mesh)
        longest = max(fitting, key=lambda i: x.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def sharded_shapes(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes with the sharding that `state_shardings` gives them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, state_shardings(tree, mesh))


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process has, sent to the devices as `state_shardings` says."""

    def send(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(send, tree, state_shardings(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Sends this process's rows of a batch to its devices, each its rows; all processes make one global batch."""
    return {k: jax.make_array_from_process_local_data(batch_sharding(mesh), v) for k, v in batch.items()}


def check_divides(name: str, batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be split evenly.

    Raises:
      ConfigError: The message has a batch size that can.
    """
    count = mesh.size
    if batch_size % count:
        raise ConfigError(f"{name}={batch_size} must be a multiple of the {count} devices, such as {max(batch_size // count, 1) * count}")

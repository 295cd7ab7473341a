"""All devices of all processes as one mesh with the axes `data`, `fsdp` and `tensor`.

A batch is split over `data` and `fsdp`, large parameters over `fsdp`. Devices along `tensor` have
the same images, and parts of those parameters that the model's family names. Several TPU slices lie
along the outer part of `data`: only the sum of the gradients crosses the network between them.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from vitlab.config import ConfigError
from vitlab.tree import leaf_names

TensorSplit = Mapping[str, tuple[str | None, ...]]  # see vitlab/layers/tensor_split.py
FSDP_FLOOR = 2**16  # elements; a smaller array costs more to gather than to store on every device


def make_mesh(*, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
      fsdp: Devices along `fsdp`.
      tensor: Devices along `tensor`.
      devices: Devices of the mesh; None: all devices of all processes.

    Raises:
      ConfigError: The number of devices is not a multiple of `fsdp` * `tensor`, or they cannot be
        laid out so; or processes have different numbers of devices, or parts of groups of `tensor`
        devices, so that a batch cannot be split evenly over processes.
    """
    if devices is None:
        devices = jax.devices()
        counts = collections.Counter(device.process_index for device in devices)
        if len(set(counts.values())) > 1:
            raise ConfigError(f"every process must have the same number of devices; they have {sorted(counts.values())}")
    if len(devices) % (fsdp * tensor):
        raise ConfigError(f"mesh.fsdp={fsdp} times mesh.tensor={tensor} must divide the {len(devices)} devices")
    axes, auto, num_slices = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, slices_of(devices)
    if len(devices) // num_slices % (fsdp * tensor):
        raise ConfigError(f"mesh.fsdp={fsdp} times mesh.tensor={tensor} must divide the {len(devices) // num_slices} devices of each slice")
    inner = (len(devices) // (num_slices * fsdp * tensor), fsdp, tensor)
    try:
        if num_slices > 1:
            mesh = Mesh(mesh_utils.create_hybrid_device_mesh(inner, (num_slices, 1, 1), devices), axes, axis_types=auto)
        else:
            mesh = jax.make_mesh(inner, axes, axis_types=auto, devices=devices)
    except NotImplementedError as error:  # the links of a TPU slice do not form these rings
        raise ConfigError(f"the devices cannot be laid out with mesh.fsdp={fsdp} and mesh.tensor={tensor}; try others") from error
    parts_of_batch(_processes(mesh))
    return mesh


def slices_of(devices: Sequence[Any]) -> int:
    """Returns the number of TPU slices that the devices are of; devices that are no TPUs are one.

    Raises:
      ConfigError: The slices have different numbers of devices.
    """
    counts = collections.Counter(getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu")
    if len(set(counts.values())) > 1:
        raise ConfigError(f"every slice must have the same number of devices; they have {sorted(counts.values())}")
    return max(len(counts), 1)


def state_shardings(state: Any, mesh: Mesh, split: TensorSplit | None = None) -> Any:
    """Returns the sharding of each array; optimizer state follows its parameters' names and shapes.

    An array is split over `tensor` as `split`, the family's table, says for its name, if the axis
    divides the dimension. An array of at least `FSDP_FLOOR` elements is also split over `fsdp`,
    along the longest other dimension that `fsdp` divides.
    """

    def sharding(name: str, x: Any) -> NamedSharding:
        sizes = mesh.shape
        named = named_axes(name, x.shape, split or {})
        axes = [axis if axis and sizes[axis] > 1 and n % sizes[axis] == 0 else None for n, axis in zip(x.shape, named, strict=True)]
        fitting = [i for i, n in enumerate(x.shape) if axes[i] is None and n % sizes["fsdp"] == 0]
        if sizes["fsdp"] > 1 and x.size >= FSDP_FLOOR and fitting:
            axes[max(fitting, key=lambda i: x.shape[i])] = "fsdp"
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, PartitionSpec(*axes))

    leaves, treedef = jax.tree.flatten(state)
    return jax.tree.unflatten(treedef, map(sharding, leaf_names(state), leaves))


def named_axes(name: str, shape: tuple[int, ...], split: TensorSplit) -> tuple[str | None, ...]:
    """Returns the axes that `split` names for an array.

    An array of another rank, such as a factored moment, is split over none.
    """
    found = (axes for regex, axes in split.items() if len(axes) == len(shape) and re.search(regex, name))
    return next(found, (None,) * len(shape))


def sharded_shapes(tree: Any, mesh: Mesh, split: TensorSplit | None = None) -> Any:
    """Returns shapes and dtypes with the sharding that `state_shardings` gives."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, state_shardings(tree, mesh, split))


def share_of_device(tree: Any) -> float:
    """Returns the share of elements of a tree of `sharded_shapes` that one device has."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves) / sum(x.size for x in leaves)


def place(tree: Any, mesh: Mesh, split: TensorSplit | None = None) -> Any:
    """Sends arrays that every process has to the devices, as `state_shardings` lays them out."""

    def send(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(send, tree, state_shardings(tree, mesh, split))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first dimension over `data` and `fsdp`.

    Devices along `tensor` have the same rows.
    """
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Sends this process's part of a batch to its devices; all processes make one global batch.

    Args:
      batch: This process's rows of each array, see `part_of_process`.
      mesh: The mesh.
    """
    return {k: jax.make_array_from_process_local_data(batch_sharding(mesh), v) for k, v in batch.items()}


def part_of_process(mesh: Mesh) -> tuple[int, int]:
    """Returns which part of each batch this process reads, and the number of parts.

    Processes along `tensor` read the same part.
    """
    parts = parts_of_batch(_processes(mesh))
    return parts[jax.process_index()], max(parts.values()) + 1


def _processes(mesh: Mesh) -> Int[np.ndarray, "groups tensor"]:
    """Returns each device's process number; devices of a group have the same rows of a batch."""
    return np.array([device.process_index for device in mesh.devices.flat]).reshape(-1, mesh.shape["tensor"])


def parts_of_batch(processes: Int[np.ndarray, "groups tensor"]) -> dict[int, int]:
    """Returns the part of a batch that each process reads, by process number.

    Args:
      processes: Process number of each device; devices of one row have the same images.

    Raises:
      ConfigError: The parts would overlap, or differ in size.
    """
    rows = {int(p): frozenset(np.nonzero(processes == p)[0].tolist()) for p in np.unique(processes)}
    parts = list(dict.fromkeys(rows.values()))
    if sum(map(len, parts)) != len(processes) or len(set(map(len, parts))) > 1:
        count = np.count_nonzero(processes == processes[0, 0])
        raise ConfigError(f"mesh.tensor={processes.shape[1]} must divide the {count} devices of a process, or be a multiple of them")
    return {p: parts.index(own) for p, own in rows.items()}


def check_divides(name: str, batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be split evenly.

    Raises:
      ConfigError: The batch size does not fit; the message has one that does.
    """
    tensor = mesh.shape["tensor"]
    count = mesh.size // tensor
    if batch_size % count:
        what = f"{count} devices" if tensor == 1 else f"{count} groups of mesh.tensor={tensor} devices"
        raise ConfigError(f"{name}={batch_size} must be a multiple of the {what}, such as {max(batch_size // count, 1) * count}")

"""Kernels on many devices: XLA partitions everything but them, so each runs on the images of its
device, by `jax.shard_map`.

Devices along a mesh axis `tensor` have the same images; there a kernel runs on the heads of its
device, where it says it can.

A kernel sees the mesh that is in force when it is traced (`jax.set_mesh`,
`jax.sharding.use_abstract_mesh`). What it owes `jax.shard_map` is to tell which of its arrays
differ from shard to shard.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

TENSOR = "tensor"  # the mesh axis along which devices have the same images and other heads


def varying_like(x: Array, like: Array) -> Array:
    """Marks `x` as differing from shard to shard wherever `like` does, so that its gradient is
    summed over the shards.

    A rule written by hand (`jax.custom_vjp`) must return gradients that vary as its arguments do;
    without the mark the gradient of a bias that all shards share would not be summed.
    """
    axes = jax.typeof(like).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x


def result_like(x: Array, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a result of `pallas_call`, marked as differing from shard to shard as
    `x` does.
    """
    return jax.ShapeDtypeStruct(shape, dtype or x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def by_images(fn: Callable[..., Any], arrays: Any, bias: Any, mask: Any, *, heads: bool = False) -> Any:
    """fn(arrays, bias, mask), on each device with its share of the images.

    The bias is whole everywhere.

    Nothing is split where one device is all there is, or where the caller has split already.

    Args:
      fn: The kernel.
      arrays: A tree of arrays, images first.
      bias: A tree of arrays that all images share, or None.
      mask: An array with images first, or None.
      heads: The arrays are query, key and value, [b, ..., heads, head_dim], or the projection that
        holds all three, [b, ..., 3, heads, head_dim], the bias [heads, ...] and the result [b, ...,
        heads, head_dim], and the kernel may run on some of the heads: on a device's share of them,
        where there is an axis `tensor` that divides them.
    """
    axes = automatic_axes()
    tensor = axes.pop(TENSOR, 1)
    if math.prod(axes.values()) * tensor == 1:
        return fn(arrays, bias, mask)

    def shard(arrays, bias, mask):
        like = jax.tree.leaves(arrays)[0]
        return fn(arrays, jax.tree.map(lambda x: varying_like(x, like), bias), mask)

    images = PartitionSpec(tuple(axes))
    in_specs, out_specs = (images, PartitionSpec(), images), images
    leaves = jax.tree.leaves(arrays)
    if heads and tensor > 1 and all(x.shape[-2] % tensor == 0 for x in leaves):

        def by_heads(ndim: int) -> PartitionSpec:
            return PartitionSpec(tuple(axes), *(None,) * (ndim - 3), TENSOR, None)

        out_specs = by_heads(leaves[0].ndim - (len(leaves) == 1))
        in_specs = (jax.tree.map(lambda x: by_heads(x.ndim), arrays), PartitionSpec(TENSOR), images)
    return jax.shard_map(shard, in_specs=in_specs, out_specs=out_specs)(arrays, bias, mask)


def indivisible(num_images: int) -> str | None:
    """Why so many images cannot be split over the mesh in force, or None."""
    shards = math.prod(size for name, size in automatic_axes().items() if name != TENSOR)
    return f"{num_images} images cannot be split over {shards} devices" if num_images % shards else None


def automatic_axes() -> dict[str, int]:
    """Name and size of the axes over which XLA partitions by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}

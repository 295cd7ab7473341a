"""Runs the blocks of a stage: one by one or as a compiled loop, rematerialised or not."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array

from vitlab.layers.drop_path import DropPath

# `Remat` names the part of a block that the backward pass recomputes: "none"; "full", everything
# from the block's input; "dots", everything but products with weights, whose results stay in memory
# (attention's own products are recomputed).
Remat = Literal["none", "full", "dots"]
T = TypeVar("T")  # what goes from block to block
_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def run_blocks(
    blocks: Sequence[Callable[..., T]], x: T, *, remat: Remat, scan: bool, train: bool, rngs: nnx.Rngs | None, **options: Any
) -> T:
    """x = block(x, train=train, rngs=rngs, **options) for each block, recomputed in the backward
    pass as `remat` says.

    What goes from block to block is an array, or a tuple of arrays.

    With `scan`, blocks in a row that differ only in the values of their parameters (and in how
    often they drop their paths), or groups of such blocks that repeat, are compiled once and run as
    a loop: the same numbers, less time to compile, and a copy of the blocks' parameters in memory
    while a step runs.

    A block with an attribute `plugin` (`vitlab.layers.plug_ins`) hands its map to that module.

    Under a mesh with an axis `fsdp`, results stay split over the batch as the images are, so that
    the compiler gathers parameters and not activations.
    """

    def call(block: Callable[..., T], x: T, rngs: nnx.Rngs | None) -> T:
        return _plugged(block, block(x, train=train, rngs=rngs, **options), train=train)

    def run(block: Callable[..., T], x: T, rngs: nnx.Rngs | None) -> T:
        return _split_over_batch((call if remat == "none" else nnx.remat(call, policy=_POLICIES[remat]))(block, x, rngs))

    for groups in _alike(blocks) if scan else [[blocks]]:
        if len(groups) == 1:
            for block in groups[0]:
                x = run(block, x, rngs)
        else:
            x = _loop(run, groups, x, rngs)
    return x


def takes_train(module: Any) -> bool:
    """Whether a mixer or plug-in is to be told if it is in training, as those with a batch norm
    are.
    """
    return "train" in inspect.signature(type(module).__call__).parameters


def _plugged(block: Any, x: Any, *, train: bool) -> Any:
    """Applies the block's plug-in to its map; returns the map itself if there is none.

    Of a tuple the map is the first entry.
    """
    plugin = getattr(block, "plugin", None)
    if plugin is None:
        return x
    if isinstance(x, tuple):
        return _plugged(block, x[0], train=train), *x[1:]
    return plugin(x, train=train) if takes_train(plugin) else plugin(x)


def _alike(blocks: Sequence[Any]) -> Iterator[list[Sequence[Any]]]:
    """Cuts the blocks, in order, into lists of groups; groups of a list differ only in values."""
    kinds = [_kind(block) for block in blocks]
    start = 0
    while start < len(blocks):
        left = kinds[start:]
        size = max(range(1, len(left) // 2 + 1), key=lambda size: ((_repeats(left, size) - 1) * size, -size), default=1)
        count = _repeats(left, size)
        yield [blocks[start + i * size : start + (i + 1) * size] for i in range(count)]
        start += count * size


def _repeats(kinds: list[Any], size: int) -> int:
    """Counts how many times in a row the first `size` kinds occur."""
    count = 1
    while kinds[count * size : (count + 1) * size] == kinds[:size]:
        count += 1
    return count


def _kind(block: Any) -> Any:
    """Returns a key that is equal for blocks which one compiled program can run."""
    graphdef, state = nnx.split(block)
    block = nnx.merge(graphdef, state, copy=True)
    for path in _drop_paths(block):
        path.rate = float(path.rate > 0)
    graphdef, state = nnx.split(block)
    return graphdef, jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


def _drop_paths(blocks: Any) -> list[DropPath]:
    return [module for _, module in nnx.iter_modules(blocks) if isinstance(module, DropPath)]


def _loop(run: Callable[..., T], groups: Sequence[Sequence[Any]], x: T, rngs: nnx.Rngs | None) -> T:
    """`run` over all blocks of the groups, compiled for one group."""
    lists = [nnx.List(group) for group in groups]
    graphdef = nnx.graphdef(lists[0])
    rngs_def, rngs_state = nnx.split(rngs)
    rates = jnp.asarray([[path.rate for path in _drop_paths(blocks)] for blocks in lists], jnp.float32)

    def body(carry: tuple[Any, Any], one: tuple[Any, Array]) -> tuple[tuple[Any, Any], Any]:
        x, rngs_state = carry
        blocks, rngs = nnx.merge(graphdef, one[0], copy=True), nnx.merge(rngs_def, rngs_state, copy=True)
        for path, rate in zip(_drop_paths(blocks), one[1], strict=True):
            path.rate = rate if path.rate else 0.0
        for block in blocks:
            x = run(block, x, rngs)
        return (x, nnx.state(rngs)), nnx.state(blocks, nnx.BatchStat)

    states = jax.tree.map(lambda *xs: jnp.stack(xs), *(nnx.state(blocks) for blocks in lists))
    (x, rngs_state), stats = jax.lax.scan(body, (x, rngs_state), (states, rates))
    nnx.update(rngs, rngs_state)
    for i, blocks in enumerate(lists):
        nnx.update(blocks, jax.tree.map(lambda stat, i=i: stat[i], stats))
    return x


def _split_over_batch(x: T) -> T:
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names or mesh.shape["fsdp"] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))

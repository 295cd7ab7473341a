"""Forms of windowed attention that others use.

The benchmark runs them beside the implementations.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.window_attention.shapes import Shape
from pallas_kernels.window_attention.windows import Windows, expand_bias


def roll_and_partition(shape: Shape, dtype: str, which: str) -> Callable[[], Any]:
    """The usual form in JAX: roll, partition, softmax(q k + bias and mask) v by einsum and
    autodiff, reverse, roll.
    """
    (query, key, value), options = shape.arguments(dtype)
    offsets = _offsets(shape)
    cotangent = jnp.ones_like(query)

    def attend(query, key, value, table):
        bias = _bias(table, shape, offsets)
        q, k, v = (_partition(x, shape, jnp) for x in (query, key, value))
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k) * shape.size[-1] ** -0.5
        logits = logits.reshape(shape.size[0], -1, *logits.shape[1:]) + bias
        weights = jax.nn.softmax(logits.astype(jnp.float32), -1).reshape(-1, *logits.shape[2:]).astype(v.dtype)
        return _merge(jnp.einsum("nhqk,nkhd->nqhd", weights, v), shape, jnp)

    arguments = (query, key, value, options["bias"])
    pull_back = jax.jit(lambda arguments: jax.vjp(attend, *arguments)[1](cotangent))
    forward = jax.jit(lambda arguments: attend(*arguments))
    run = forward if which == "forward" else pull_back
    return lambda: jax.block_until_ready(run(arguments))


def torch_sdpa(shape: Shape, dtype: str, which: str) -> Callable[[], Any]:
    """Windowed attention in torch on the CPU: scaled_dot_product_attention with bias and mask as
    one additive mask.
    """
    import torch

    (query, key, value), options = shape.arguments(jnp.float32)
    to_torch = lambda x: torch.from_numpy(np.array(x)).to(getattr(torch, dtype)).requires_grad_()  # noqa: E731
    arrays = [to_torch(x) for x in (query, key, value)]
    bias = to_torch(_bias(options["bias"], shape, _offsets(shape)))
    cotangent = torch.ones(shape.size, dtype=arrays[0].dtype)

    def attend():
        q, k, v = (_partition(x, shape, torch).reshape(shape.size[0], -1, *shape.windowed).transpose(2, 3) for x in arrays)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return _merge(out.transpose(2, 3).reshape(-1, *shape.windowed), shape, torch)

    def forward():
        with torch.no_grad():
            attend()

    return forward if which == "forward" else lambda: torch.autograd.grad(attend(), [*arrays, bias], cotangent)


OPPONENTS: Mapping[str, Callable[[Shape, str, str], Callable[[], Any]]] = {
    "roll and partition": roll_and_partition,
    "torch sdpa": torch_sdpa,
}


def _sides(shape: Shape) -> tuple[int, int]:
    return (shape.shift, shape.shift) if isinstance(shape.shift, int) else shape.shift


def _offsets(shape: Shape) -> np.ndarray:
    """Summands of the logits of every window that the shift needs, [windows, 1, slots, slots]."""
    table, kind = Windows.of(shape.size[1:3], shape.windows, _sides(shape), shape.grid).offsets()
    return table[kind][:, None]


def _bias(table, shape: Shape, offsets: np.ndarray):
    return offsets if table is None else expand_bias(table, shape.windows) + offsets


def _partition(x, shape: Shape, np_like):
    b, h, w, heads, d = shape.size
    if h % shape.windows[0] or w % shape.windows[1] or shape.mask:
        raise UnsupportedError("it is written for whole windows and no mask only")
    rows, cols = h // shape.windows[0], w // shape.windows[1]
    if any(_sides(shape)):
        x = np_like.roll(x, tuple(-s for s in _sides(shape)), (1, 2))
    if shape.grid:
        order, cut = (0, 2, 4, 1, 3, 5, 6), (b, shape.windows[0], rows, shape.windows[1], cols, heads, d)
    else:
        order, cut = (0, 1, 3, 2, 4, 5, 6), (b, rows, shape.windows[0], cols, shape.windows[1], heads, d)
    x = x.reshape(cut)
    x = x.permute(order) if hasattr(x, "permute") else x.transpose(order)
    return x.reshape(-1, *shape.windowed)


def _merge(x, shape: Shape, np_like):
    b, h, w, heads, d = shape.size
    rows, cols = h // shape.windows[0], w // shape.windows[1]
    x = x.reshape(b, rows, cols, *shape.windows, heads, d)
    order = (0, 3, 1, 4, 2, 5, 6) if shape.grid else (0, 1, 3, 2, 4, 5, 6)
    x = (x.permute(order) if hasattr(x, "permute") else x.transpose(order)).reshape(shape.size)
    return np_like.roll(x, _sides(shape), (1, 2)) if any(_sides(shape)) else x

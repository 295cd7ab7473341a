"""Forms of neighborhood attention that others use.

The benchmark runs them beside the implementations.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.neighborhood_attention.shapes import Shape

MAX_BYTES = 4 * 2**30  # most that an opponent may gather, or hold as logits


def gather(shape: Shape, dtype: str, which: str) -> Callable[[], Any]:
    """The usual form in JAX: every query gathers its keys and values, kernel_size of them per axis;
    autodiff.
    """
    axes = _axes(shape)
    keys = math.prod(axis.kernel for axis in axes)
    _refuse_above(2 * math.prod(shape.size) * keys * jnp.dtype(dtype).itemsize, "the gathered keys and values")
    start = [axis.windows()[0].T.reshape(-1)[: axis.size] for axis in axes]  # by position, then residue: by token
    tokens = [
        (first[:, None] + np.arange(axis.kernel)) * axis.dilation + np.arange(axis.size)[:, None] % axis.dilation
        for axis, first in zip(axes, start, strict=True)
    ]
    n = len(axes)

    def near(x):
        for i, token in enumerate(tokens):
            x = jnp.moveaxis(jnp.take(x, token, axis=1 + i), 2 + i, x.ndim - 2)  # keys of the axis before the heads
        b, *spatial, heads, d = shape.size
        return x.reshape(b, *spatial, keys, heads, d) if n else x

    def attend(query, key, value, bias):
        logits = jnp.einsum("...hd,...khd->...hk", query, near(key)) * shape.size[-1] ** -0.5
        if bias is not None:
            logits += _bias_of_window(bias, axes, tokens)
        weights = jax.nn.softmax(logits.astype(jnp.float32), -1).astype(value.dtype)
        return jnp.einsum("...hk,...khd->...hd", weights, near(value))

    return _passes(attend, shape, dtype, which)


def dense_masked(shape: Shape, dtype: str, which: str) -> Callable[[], Any]:
    """Attention of all pairs under a mask, by JAX's own operator."""
    axes = _axes(shape)
    b, *spatial, heads, d = shape.size
    n = math.prod(spatial)
    _refuse_above(4 * b * heads * n * n, "the scores of all pairs")
    mask = _mask(axes)

    def attend(query, key, value, bias):
        q, k, v = (x.reshape(b, n, heads, d) for x in (query, key, value))
        table = None if bias is None else _bias_of_pairs(bias, axes)[None].astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, bias=table, mask=jnp.asarray(mask)[None, None]).reshape(shape.size)

    return _passes(attend, shape, dtype, which)


def torch_sdpa(shape: Shape, dtype: str, which: str) -> Callable[[], Any]:
    """Dense attention in torch, with its fused scaled_dot_product_attention and bias and mask as
    one additive mask, on the CPU.
    """
    import torch

    axes = _axes(shape)
    b, *spatial, heads, d = shape.size
    n = math.prod(spatial)
    _refuse_above(4 * b * heads * n * n, "the scores of all pairs")
    (query, key, value), options = shape.arguments(jnp.float32)
    to_torch = lambda x: torch.from_numpy(np.array(x)).to(getattr(torch, dtype)).requires_grad_()  # noqa: E731
    table = 0.0 if (bias := options.get("bias")) is None else _bias_of_pairs(bias, axes)
    table = to_torch(np.broadcast_to(np.where(_mask(axes), table, -np.inf), (heads, n, n)))
    arrays = [to_torch(x.reshape(b, n, heads, d)) for x in (query, key, value)]
    cotangent = torch.ones((b, n, heads, d), dtype=arrays[0].dtype)

    def attend():
        q, k, v = (x.transpose(1, 2) for x in arrays)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=table).transpose(1, 2)

    def forward():
        with torch.no_grad():
            attend()

    trained = [*arrays, *([table] if bias is not None else [])]
    return forward if which == "forward" else lambda: torch.autograd.grad(attend(), trained, cotangent)


OPPONENTS: Mapping[str, Callable[[Shape, str, str], Callable[[], Any]]] = {
    "gather": gather,
    "dense masked": dense_masked,
    "torch sdpa": torch_sdpa,
}


def _axes(shape: Shape) -> tuple[Axis, ...]:
    spatial = shape.size[1:-2]
    options = zip(*map(shape.per_axis, (shape.kernel_size, shape.dilation, shape.stride, shape.is_causal)), strict=True)
    axes = tuple(Axis(size, *option) for size, option in zip(spatial, options, strict=True))
    if shape.kv_heads or shape.extra or any(axis.causal or axis.stride > 1 for axis in axes):
        raise UnsupportedError("it is written for plain windows, dilation and bias only")
    return axes


def _refuse_above(needed: int, what: str) -> None:
    if needed > MAX_BYTES:
        raise UnsupportedError(f"{what} are {needed / 2**30:.0f} GiB")


def _passes(attend, shape: Shape, dtype: str, which: str) -> Callable[[], Any]:
    (query, key, value), options = shape.arguments(dtype)
    arguments = (query, key, value, options.get("bias"))
    cotangent = jnp.ones_like(query)
    backward = jax.jit(lambda arguments: jax.vjp(attend, *arguments)[1](cotangent))
    forward = jax.jit(lambda arguments: attend(*arguments))
    run = forward if which == "forward" else backward
    return lambda: jax.block_until_ready(run(arguments))


def _mask(axes: tuple[Axis, ...]) -> np.ndarray:
    """Whether a query sees a key, [tokens, tokens]."""
    mask = np.ones((1, 1), bool)
    for axis in axes:
        mask = np.kron(mask, axis.mask())
    return mask


def _bias_of_pairs(bias, axes: tuple[Axis, ...]):
    """[heads, tokens, tokens]."""
    places = np.indices([axis.size for axis in axes]).reshape(len(axes), -1)
    return bias[(slice(None), *(axis.offsets()[place[:, None], place] for axis, place in zip(axes, places, strict=True)))]


def _bias_of_window(bias, axes: tuple[Axis, ...], tokens):
    """[*spatial, heads, keys]."""
    n = len(axes)
    index = []
    for i, (axis, token) in enumerate(zip(axes, tokens, strict=True)):
        offset = np.take_along_axis(axis.offsets(), token, 1)
        index.append(offset.reshape([axis.size if j == i else axis.kernel if j == n + i else 1 for j in range(2 * n)]))
    table = bias[(slice(None), *index)]
    return jnp.moveaxis(table.reshape(*table.shape[: 1 + n], -1), 0, -2)

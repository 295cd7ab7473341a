"""Attention on TPUs: an image's tokens and all heads in VMEM.

Arrays are [n, heads * head_dim], the layout in which projections read and write them.

Logits are kept [keys, queries], so that softmax reduces over sublanes, by plain additions of
registers, and the products of the backward pass that sum over queries need no transpose of scores.
Heads of fewer than 128 channels share the lanes: a query with zeros in the lanes of other heads
gives the logits of its own head in a product of full depth, at no extra cost in the matrix unit.
The backward pass recomputes the weights from query and key.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.attention.tiles import Layout
from pallas_kernels.dispatch import unsupported_array
from pallas_kernels.logits import LOG2E, NO_KEY, dot
from pallas_kernels.sharding import by_images, indivisible, result_like
from pallas_kernels.tpu import DTYPES, HEAD_DIMS, LANES, SUBLANES, usable_vmem, wrong_platform

VMEM_MARGIN = 8 * 2**20  # bytes for the compiler's own needs besides the arrays


def attention(query, key, value, *, interpret: bool = False, **options) -> Float[Array, "b n heads head_dim"]:
    """The operator on canonical arguments.

    `interpret` runs the kernels in an interpreter, for tests.
    """
    if (groups := query.shape[2] // key.shape[2]) > 1:
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    return _run((query, key, value), interpret, **options)


def attention_qkv(qkv, qkv_bias=None, *, interpret: bool = False, **options) -> Float[Array, "b n heads head_dim"]:
    """The operator on the fused projection, which is read in place.

    XLA adds the projection's bias where it computes the projection; the backward kernel sums the
    bias's gradient from the projection's gradient in VMEM.
    """
    return _run((qkv,), interpret, qkv_bias, **options)


def unsupported_reason(*arrays: Array, bias, mask, is_causal, return_logsumexp, interpret: bool = False, **_) -> str | None:
    """The reason why the kernels cannot run these arguments here, or None.

    It holds for `attention` and `attention_qkv`.
    """
    if reason := wrong_platform(interpret=interpret) or indivisible(arrays[0].shape[0]):
        return reason
    if reason := unsupported_array(arrays[0], DTYPES, HEAD_DIMS):
        return reason
    layout = Layout.of(arrays, is_causal)
    if min(layout.n, layout.m) < SUBLANES:
        return f"{layout.n} queries or {layout.m} keys do not fill a register's {SUBLANES} rows"
    if bias is not None:
        return "it takes no bias"
    if mask is not None and mask.shape[1:3] != (1, 1):
        return f"its mask hides keys from all queries and heads, [b or 1, 1, 1, m], not {mask.shape}"
    if return_logsumexp:
        return "it does not return the logsumexp"
    usable = usable_vmem() - VMEM_MARGIN
    if (needed := layout.vmem_bytes(3, 4)) > usable:
        return f"the backward pass of so many tokens and heads needs {needed >> 20} MiB of VMEM, above {usable >> 20}"
    return None


def _run(arrays, interpret, qkv_bias=None, *, bias, mask, is_causal, scale, return_logsumexp):
    del bias, return_logsumexp  # `unsupported_reason` has refused them

    def attend(arrays, qkv_bias, mask):
        layout = Layout.of(arrays, is_causal)
        shape = (layout.b, layout.n, layout.heads, layout.head_dim)
        arrays = tuple(x.reshape(*x.shape[:2], -1) for x in arrays)
        if qkv_bias is not None:
            qkv_bias = qkv_bias.swapaxes(0, 1).reshape(-1)
        out: Array = _attend(arrays, qkv_bias, mask, layout, scale, interpret)  # pyright: ignore[reportAssignmentType]
        return out.reshape(shape)

    if mask is not None:
        mask = jnp.broadcast_to(mask[:, :, 0], (arrays[0].shape[0], 1, mask.shape[-1]))
    if qkv_bias is not None:
        qkv_bias = qkv_bias.swapaxes(0, 1)  # [heads, 3, head_dim]: heads may be split over devices
    return by_images(attend, arrays, qkv_bias, mask, heads=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(arrays, qkv_bias, mask, layout: Layout, scale: float, interpret: bool):
    return _forward(arrays, qkv_bias, mask, layout, scale, interpret)[0]


def _forward(arrays, qkv_bias, mask, layout: Layout, scale: float, interpret: bool):
    if qkv_bias is not None:
        arrays = (arrays[0] + qkv_bias.astype(arrays[0].dtype)[None, None],)
    kernel = functools.partial(forward_kernel, layout=layout, scale=scale)
    like = [result_like(arrays[0], (layout.b, layout.n, layout.width))]
    (out,) = _call(kernel, "attention_forward", arrays, mask, like, layout.vmem_bytes(2, 2), layout, interpret)
    return out, (arrays, qkv_bias, mask)


def _backward(layout: Layout, scale: float, interpret: bool, residuals, d_out):
    arrays, qkv_bias, mask = residuals
    kernel = functools.partial(backward_kernel, layout=layout, scale=scale)
    like = [result_like(x, x.shape) for x in arrays]
    if qkv_bias is not None:
        like.append(result_like(arrays[0], (layout.programs, 1, 3 * layout.width), jnp.float32))
    grads = _call(kernel, "attention_backward", (*arrays, d_out), mask, like, layout.vmem_bytes(3, 4), layout, interpret)
    d_bias = None if qkv_bias is None else grads[-1].sum((0, 1)).astype(qkv_bias.dtype)
    return tuple(grads[: len(arrays)]), d_bias, None


_attend.defvjp(_forward, _backward)


def _call(kernel, name: str, arrays: Sequence[Array], mask, like: Sequence[Any], vmem_bytes: int, layout: Layout, interpret: bool):
    """Runs a kernel over the images.

    Results have the shapes and dtypes of `like`; each program has an equal part of every array.
    """

    def blocks(x) -> pl.BlockSpec:
        return pl.BlockSpec((x.shape[0] // layout.programs, *x.shape[1:]), lambda i: (i, 0, 0))

    seen = () if mask is None else (jnp.where(mask, 0.0, NO_KEY).astype(jnp.float32),)
    return pl.pallas_call(
        kernel,
        grid=(layout.programs,),
        in_specs=(tuple(map(blocks, arrays)), tuple(map(blocks, seen))),
        out_specs=tuple(map(blocks, like)),
        out_shape=tuple(like),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=vmem_bytes + VMEM_MARGIN),
        name=name,
        interpret=interpret,
    )(tuple(arrays), seen)


def forward_kernel(in_refs, seen_refs, out_ref, *, layout: Layout, scale: float):
    """Attends in all heads of the images of one program."""
    dtype = out_ref.dtype

    def attend(image, start, width: int):
        q, k, v = _load(in_refs, image, start, width, layout)
        values, hidden = v.T, _hidden_keys(seen_refs, image, layout)
        for tile in layout.tiles:
            outs = []
            for head in range(width // layout.head_dim):
                logits = dot(k, _own_lanes(q[tile], head, layout), (1, 1))  # [keys, queries]
                weights, factor = _softmax(logits, hidden, tile, layout, scale)
                outs.append(dot(values[_channels(head, layout)], weights.astype(dtype), (1, 0)) * factor)
            out_ref[image, tile, pl.ds(start, width)] = jnp.concatenate(outs, 0).astype(dtype).T

    _each_group_of_heads(attend, layout)


def backward_kernel(in_refs, seen_refs, *grad_refs, layout: Layout, scale: float):
    """Computes gradients in all heads of the images of one program.

    With a reference for it, the gradient of the projection's bias is computed too.
    """
    *array_refs, d_out_ref = in_refs
    grad_refs, sum_refs = grad_refs[: len(array_refs)], grad_refs[len(array_refs) :]
    dtype = d_out_ref.dtype
    for ref in sum_refs:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)

    def store(part: int, image, tokens: slice, start, x: Array) -> None:
        """Writes the gradient of query (0), key (1) or value (2)."""
        at = pl.ds(start + (part * layout.width if len(grad_refs) == 1 else 0), x.shape[1])
        grad_refs[part if len(grad_refs) == 3 else 0][image, tokens, at] = x.astype(dtype)
        for ref in sum_refs:
            ref[0, :, at] += jnp.sum(x.astype(jnp.float32), 0, keepdims=True)

    def attend(image, start, width: int):
        q, k, v = _load(array_refs, image, start, width, layout)
        keys, hidden = k.T, _hidden_keys(seen_refs, image, layout)
        d_key = d_value = jnp.zeros((layout.m, width), jnp.float32)
        for tile in layout.tiles:
            d_out, d_queries = d_out_ref[image, tile, pl.ds(start, width)], []
            for head in range(width // layout.head_dim):
                own_q, own_d_out = (_own_lanes(x, head, layout) for x in (q[tile], d_out))
                weights, factor = _softmax(dot(k, own_q, (1, 1)), hidden, tile, layout, scale)
                weights = weights * factor  # [keys, queries]
                d_weights = dot(v, own_d_out, (1, 1))
                products = weights * d_weights
                d_logits = (products - weights * jnp.sum(products, 0, keepdims=True)).astype(dtype)
                d_value += dot(weights.astype(dtype), own_d_out, (1, 0))
                d_key += dot(d_logits, own_q, (1, 0))
                d_queries.append(dot(keys[_channels(head, layout)], d_logits, (1, 0)) * scale)
            store(0, image, tile, start, jnp.concatenate(d_queries, 0).astype(dtype).T)
        store(1, image, slice(None), start, d_key * scale)
        store(2, image, slice(None), start, d_value)

    _each_group_of_heads(attend, layout)


def _each_group_of_heads(attend: Callable[..., None], layout: Layout) -> None:
    """Calls attend(image, first channel, channels) for each group of heads that share lanes."""

    def image(i, carry):
        if layout.loops:
            lax.fori_loop(0, layout.width // LANES, lambda j, _: attend(i, pl.multiple_of(j * LANES, LANES), LANES), None)
        else:
            for start in range(0, layout.width, LANES):
                attend(i, start, min(LANES, layout.width - start))
        return carry

    lax.fori_loop(0, layout.images, image, None)


def _load(refs, image, start, width: int, layout: Layout) -> list[Array]:
    """Query, key and value of one group of heads, [tokens, width] each."""
    if len(refs) == 3:
        return [ref[image, :, pl.ds(start, width)] for ref in refs]
    return [refs[0][image, :, pl.ds(start + part * layout.width, width)] for part in range(3)]


def _channels(head: int, layout: Layout) -> slice:
    return slice(head * layout.head_dim, (head + 1) * layout.head_dim)


def _own_lanes(x: Array, head: int, layout: Layout) -> Array:
    """x with zeros in the lanes of other heads."""
    if x.shape[1] == layout.head_dim:
        return x
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) // layout.head_dim == head, x, jnp.zeros_like(x))


def _hidden_keys(seen_refs, image, layout: Layout) -> Array | None:
    """Terms added to the logits to hide masked keys, [keys, 1], or None."""
    if not seen_refs:
        return None
    return jnp.broadcast_to(seen_refs[0][image], (SUBLANES, layout.m)).T[:, :1]


def _softmax(logits: Array, hidden: Array | None, tile: slice, layout: Layout, scale: float) -> tuple[Array, Array]:
    """Softmax over the keys without its division, [keys, queries], and the factor, [1, queries]."""
    logits = logits * (scale * LOG2E)
    if hidden is not None:
        logits += hidden
    if layout.is_causal:
        key, query = (lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        logits = jnp.where(key <= query + tile.start, logits, NO_KEY)
    weights = jnp.exp2(logits - jnp.max(logits, 0, keepdims=True))
    if hidden is not None:
        weights = jnp.where(logits > NO_KEY / 2, weights, 0.0)  # a query that sees no key gets zeros
    return weights, 1 / jnp.maximum(jnp.sum(weights, 0, keepdims=True), jnp.finfo(jnp.float32).tiny)

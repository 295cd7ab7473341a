"""The selective scan in jax.numpy, chunk by chunk: the backward pass keeps the state before each
chunk and computes the others again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.selective_scan.tiles import NO_STEP
from pallas_kernels.sharding import varying_like
from pallas_kernels.target import platform

CHUNK = 64  # tokens of a chunk


class Tokens(NamedTuple):
    """Arguments that each token has; in a chunk they are [size, b, groups, channels or state]."""

    x: Array
    dt: Array
    b: Array
    c: Array


class Weights(NamedTuple):
    """Arguments that all tokens of a group share: [groups, channels, ...]."""

    a: Array
    skip: Array
    dt_bias: Array


def selective_scan(
    x: Float[Array, "b groups n channels"],
    dt: Float[Array, "b groups n channels"],
    a: Float[Array, "groups channels state"],
    b: Float[Array, "b groups n state"],
    c: Float[Array, "b groups n state"],
    *,
    skip: Float[Array, "groups channels"],
    dt_bias: Float[Array, "groups channels"],
    reverse: bool,
) -> Float[Array, "b groups n channels"]:
    """The operator on canonical arguments."""
    return _scan(Tokens(x, dt, b, c), Weights(a, skip, dt_bias), reverse)


def unsupported_reason(*_, **__) -> str | None:
    """Runs everywhere."""
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scan(tokens: Tokens, weights: Weights, reverse: bool):
    return _forward(tokens, weights, reverse)[0]


def _forward(tokens: Tokens, weights: Weights, reverse: bool):
    def chunk(h, tokens: Tokens):
        step, _ = _steps(tokens, weights)
        states = _linear_scan(*_decays_and_inputs(step, tokens, weights), h, reverse)
        y = jnp.einsum("tbgcs,tbgs->tbgc", states, _wide(tokens.c)) + weights.skip * _wide(tokens.x)
        return states[0 if reverse else -1], (h, y.astype(tokens.x.dtype))

    chunks = _chunked(tokens, reverse)
    h = _zeros((*chunks.x.shape[2:], weights.a.shape[-1]), _wide(tokens.x))
    _, (starts, y) = jax.lax.scan(chunk, h, chunks, reverse=reverse)
    return _whole(y, tokens.x.shape[2], reverse), (tokens, weights, starts)


def _backward(reverse: bool, residuals, d_out):
    tokens, weights, starts = residuals

    def chunk(carry, at):
        d_h, d_weights = carry  # d_h: the gradient of the state after the chunk
        tokens, d_y, h = at
        x, b, c, d_y = (_wide(array) for array in (tokens.x, tokens.b, tokens.c, d_y))
        step, slope = _steps(tokens, weights)
        decays, inputs = _decays_and_inputs(step, tokens, weights)
        states = _linear_scan(decays, inputs, h, reverse)
        last, before = (0, jnp.concatenate((states[1:], h[None]))) if reverse else (-1, jnp.concatenate((h[None], states[:-1])))
        # The gradient of a state is what its token reads and, decayed, the next state's.
        d_read = d_y[..., None] * c[..., None, :]
        d_read = d_read.at[last].add(d_h)
        after = (
            jnp.concatenate((jnp.ones_like(decays[:1]), decays[:-1]))
            if reverse
            else jnp.concatenate((decays[1:], jnp.ones_like(decays[:1])))
        )
        d_states = _linear_scan(after, d_read, _zeros(h.shape, h), not reverse)
        d_rates = d_states * before * decays
        d_u = jnp.einsum("tbgcs,tbgs->tbgc", d_states, b)
        d_step = d_u * x + (d_rates * weights.a).sum(-1)
        d_dt = d_step * slope
        d_tokens = Tokens(
            x=d_u * step + weights.skip * d_y,
            dt=d_dt,
            b=jnp.einsum("tbgcs,tbgc->tbgs", d_states, step * x),
            c=jnp.einsum("tbgcs,tbgc->tbgs", states, d_y),
        )
        d_weights = Weights(
            a=d_weights.a + jnp.einsum("tbgcs,tbgc->gcs", d_rates, step),
            skip=d_weights.skip + (d_y * x).sum((0, 1)),
            dt_bias=d_weights.dt_bias + d_dt.sum((0, 1)),
        )
        d_h = (decays * d_states)[0 if not reverse else -1]
        return (d_h, d_weights), jax.tree.map(lambda d, like: d.astype(like.dtype), d_tokens, tokens)

    chunks = _chunked(tokens, reverse)
    d_y = _chunked(Tokens(d_out, d_out, d_out, d_out), reverse).x
    zeros = (_zeros(starts.shape[1:], starts), Weights(*(_zeros(w.shape, starts) for w in weights)))
    (_, d_weights), d_chunks = jax.lax.scan(chunk, zeros, (chunks, d_y, starts), reverse=not reverse)
    n = tokens.x.shape[2]
    d_tokens = Tokens(*(_whole(d, n, reverse) for d in d_chunks))
    return d_tokens, jax.tree.map(lambda d, like: d.astype(like.dtype), d_weights, weights)


_scan.defvjp(_forward, _backward)


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros in the dtype of an array that differ from shard to shard as it does."""
    return varying_like(jnp.zeros(shape, like.dtype), like)


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _steps(tokens: Tokens, weights: Weights) -> tuple[Array, Array]:
    """The steps of the tokens, [size, b, groups, channels], and their slopes."""
    dt = _wide(tokens.dt) + weights.dt_bias
    return jax.nn.softplus(dt), jax.nn.sigmoid(dt)


def _decays_and_inputs(step: Array, tokens: Tokens, weights: Weights) -> tuple[Array, Array]:
    """The share of the state that each token keeps, and the value that it adds.

    Both are [size, b, groups, channels, state].
    """
    return jnp.exp(step[..., None] * weights.a), (step * _wide(tokens.x))[..., None] * _wide(tokens.b)[..., None, :]


def _linear_scan(decays: Array, inputs: Array, h: Array, reverse: bool) -> Array:
    """h_t = decay_t h_(t-1) + input_t along the first axis.

    On a CPU one step follows the other; elsewhere a parallel prefix sum combines them.
    """
    if platform() == "cpu":

        def step(h, token):
            h = token[0] * h + token[1]
            return h, h

        return jax.lax.scan(step, h, (decays, inputs), reverse=reverse)[1]

    def join(first, then):
        return first[0] * then[0], then[0] * first[1] + then[1]

    decays, states = jax.lax.associative_scan(join, (decays, inputs), reverse=reverse)
    return states + decays * h


def _chunked(tokens: Tokens, reverse: bool) -> Tokens:
    """Cuts the tokens into chunks, [chunks, size, b, groups, ...].

    Tokens that the last chunk of the scan lacks make no step.
    """
    n = tokens.x.shape[2]
    size = min(CHUNK, n)
    overhang = -n % size
    ends = (overhang, 0) if reverse else (0, overhang)

    def cut(array: Array, value: float) -> Array:
        array = jnp.moveaxis(jnp.pad(array, ((0, 0), (0, 0), ends, (0, 0)), constant_values=value), 2, 0)
        return array.reshape(-1, size, *array.shape[1:])

    return Tokens(cut(tokens.x, 0.0), cut(tokens.dt, NO_STEP), cut(tokens.b, 0.0), cut(tokens.c, 0.0))


def _whole(chunks: Array, n: int, reverse: bool) -> Array:
    """The inverse of `_chunked`, [b, groups, n, ...]."""
    array = chunks.reshape(-1, *chunks.shape[2:])
    return jnp.moveaxis(array[-n:] if reverse else array[:n], 0, 2)

"""Pure XLA in linear memory: tiles of queries attend to the block of keys around them, one strip of
tiles after the other.

A strip is recomputed in the backward pass, so that no more than one strip's logits exist at a time.
Tiles are dense products, which CPUs and unknown devices do well; of the keys in a tile's block
about a quarter is used by each query.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.logits import NO_KEY
from pallas_kernels.neighborhood_attention.neighborhoods import Axis, Tiles


def unsupported_reason(query, key, value, **options) -> None:
    """None: the XLA form runs everything."""
    del query, key, value, options


def neighborhood_attention(query, key, value, *, axes: tuple[Axis, ...], bias, scale, extra_key, extra_value, return_logsumexp=True):
    """The operator on canonical arguments.

    Returns the attended values and the logsumexp, float32.
    """
    shared = query.shape[-2] // key.shape[-2]
    key, value = (jnp.repeat(x, shared, -2) if shared > 1 else x for x in (key, value))
    extra = None
    if extra_key is not None:
        extra = tuple(jnp.repeat(x, shared, 2).swapaxes(1, 2) for x in (extra_key, extra_value))  # b heads extra dim
    tiles = tuple(Tiles(axis) for axis in axes)
    seen = [tile.seen() for tile in tiles]

    @jax.checkpoint
    def strip(args):
        q, k, v, seen_first, offset_first = args  # q: b classes tiles heads queries dim; k, v: the same with keys
        logits = jnp.einsum("bgtnqd,bgtnkd->bgtnqk", q, k, preferred_element_type=jnp.float32) * scale
        if bias is not None:
            logits += _bias(bias.astype(jnp.float32), offset_first, [tile.offset() for tile in tiles[1:]])
        logits = jnp.where(_outer([seen_first, *seen[1:]])[None, :, :, None], logits, NO_KEY)
        if extra is not None:
            more = jnp.einsum("bgtnqd,bnkd->bgtnqk", q, extra[0], preferred_element_type=jnp.float32) * scale
            logits = jnp.concatenate((logits, more), -1)
        top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        weights = jnp.exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        weights = (weights / total).astype(v.dtype)
        out = jnp.einsum("bgtnqk,bgtnkd->bgtnqd", weights[..., : v.shape[-2]], v, preferred_element_type=jnp.float32)
        if extra is not None:
            out += jnp.einsum("bgtnqk,bnkd->bgtnqd", weights[..., v.shape[-2] :], extra[1], preferred_element_type=jnp.float32)
        return out, (top + jnp.log(total))

    first = tiles[0]
    strips = (
        _split(query, tiles, queries=True),
        _split(key, tiles, queries=False),
        _split(value, tiles, queries=False),
        jnp.asarray(seen[0].swapaxes(0, 1)),  # strip class query key
        jnp.asarray(first.offset()) if bias is not None else jnp.zeros((first.count, 0)),
    )
    if first.count == 1:
        out, logsumexp = (x[None] for x in strip(jax.tree.map(lambda x: x[0], strips)))
    else:
        out, logsumexp = jax.lax.map(strip, strips)
    return _join(out, query.shape, tiles), _join(logsumexp, query.shape, tiles)[..., 0]


def _split(x, tiles: tuple[Tiles, ...], *, queries: bool):
    """[b, *spatial, heads, dim] as [strips, b, classes, tiles, heads, tokens of a tile, dim]."""
    b, *_, heads, dim = x.shape
    d, shape = len(tiles), [b]
    for i, tile in enumerate(tiles):
        axis = tile.axis
        rows = tile.count * tile.size if queries else axis.positions
        pad = [(0, 0)] * x.ndim
        pad[1 + i] = (0, rows * axis.dilation - axis.size)
        x = jnp.pad(x, pad)
        shape += [tile.count, tile.size if queries else tile.keys.shape[1], axis.dilation]
    for i, tile in enumerate(tiles):  # splits each axis into positions and residue classes
        at = 1 + 3 * i
        x = x.reshape(*x.shape[:at], -1, tile.axis.dilation, *x.shape[at + 1 :])
        x = x.reshape(*x.shape[:at], tile.count, tile.size, *x.shape[at + 1 :]) if queries else jnp.asarray(_blocks(x, at, tile))
    counts, sizes, classes = ([1 + 3 * i + k for i in range(d)] for k in range(3))
    x = x.transpose(counts[0], 0, *classes, *counts[1:], 3 * d + 1, *sizes, 3 * d + 2)
    groups = math.prod(tile.axis.dilation for tile in tiles)
    others = math.prod(tile.count for tile in tiles[1:])
    return x.reshape(tiles[0].count, b, groups, others, heads, -1, dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _blocks(x, at: int, tile: Tiles):
    """The keys of every tile, an axis of positions as two, [count, keys].

    A rule of its own, since autodiff would add up the gradients of a key that several tiles see by
    a scatter, which on GPUs is atomic: slow, and different from run to run. Instead each key
    gathers them.
    """
    return jnp.take(x, tile.keys, axis=at)


def _blocks_forward(x, at: int, tile: Tiles):
    return _blocks(x, at, tile), None


def _blocks_backward(at: int, tile: Tiles, _, d_blocks):
    d_blocks = d_blocks.reshape(*d_blocks.shape[:at], -1, *d_blocks.shape[at + 2 :])
    return (sum(jnp.take(d_blocks, place, axis=at, mode="fill", fill_value=0) for place in tile.places()),)


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _join(x, shape: tuple[int, ...], tiles: tuple[Tiles, ...]):
    """The inverse of `_split` for what the queries got."""
    b, heads, dim, d = shape[0], shape[-2], x.shape[-1], len(tiles)
    x = x.reshape(
        tiles[0].count,
        b,
        *(tile.axis.dilation for tile in tiles),
        *(tile.count for tile in tiles[1:]),
        heads,
        *(tile.size for tile in tiles),
        dim,
    )
    counts = [0, *range(2 + d, 2 + d + d - 1)]
    order = [1]
    for i in range(d):
        order += [counts[i], 2 + 2 * d + i, 2 + i]  # tile, token, class
    x = x.transpose(*order, 1 + 2 * d, 2 + 3 * d)
    for i, tile in enumerate(tiles):
        x = x.reshape(*x.shape[: 1 + i], -1, *x.shape[4 + i :])
        x = jax.lax.slice_in_dim(x, 0, tile.axis.size, axis=1 + i)
    return x


def _outer(seen):
    """Visibility along each axis, [classes, queries, keys] of the strip and [classes, tiles,
    queries, keys] of the others, together.
    """
    out = seen[0][:, None]  # classes tiles queries keys
    for other in seen[1:]:
        g, t, q, k = out.shape
        g2, t2, q2, k2 = other.shape
        out = out[:, None, :, None, :, None, :, None] & other[None, :, None, :, None, :, None, :]
        out = out.reshape(g * g2, t * t2, q * q2, k * k2)
    return out


def _bias(bias, first, others):
    """The bias of each query and key of a strip, [tiles, heads, queries, keys], by one-hot
    products, whose gradient is one too.
    """
    x = jnp.einsum("n...r,qkr->n...qk", jnp.moveaxis(bias, 1, -1), first)[:, None]  # heads tiles *offsets queries keys
    for other in others:
        heads, t, _, *rest, q, k = x.shape
        t2, q2, k2, _ = other.shape
        x = jnp.einsum("ntr...qk,sxyr->nts...qxky", x, np.asarray(other)).reshape(heads, t * t2, *rest, q * q2, k * k2)
    return x.swapaxes(0, 1)

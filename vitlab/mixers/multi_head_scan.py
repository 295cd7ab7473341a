"""Multi-head scan (MHS-VM, Ji, arXiv:2406.05992, section 3): each head reads the map in orders of
its own.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.selective_scan import selective_scan
from vitlab.bounds import Count
from vitlab.layers.conv import Conv
from vitlab.layers.initial import torch_uniform
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.scan_orders import ORDERS, scan_order
from vitlab.layers.selective_scan import SelectiveScan

_EPS = 1e-5  # epsilon of the LayerNorms, and what keeps the mean of the coefficient of variation from zero
_ROUTES = 4  # two orders, each also backwards


class MultiHeadScan(nnx.Module):
    """SiLU of a depthwise convolution; heads with four scans of a map each, weighed by how much
    these vary; LayerNorms and a gate.

    Of the four results y of a head the sum is multiplied by relu(std(y) / mean(y - min(y)) -
    threshold), at each position and channel (scan route attention, section 3.3). As in the authors'
    code nothing follows the gate, and the standard deviation is the unbiased one.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        orders: tuple[str, ...] = tuple(ORDERS),  # keys of ORDERS, one for each head
        state_dim: Count = 16,  # numbers that a channel of a scan remembers
        threshold: float = 0.0,  # variation, standard deviation / mean, below which results count nothing
        project: bool = True,  # whether a LayerNorm and a linear layer follow the heads
        implementation: str | None = None,  # a key of selective_scan.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads, and here the orders tell them
        head_dim, options = dim // max(1, len(orders)), {"dtype": dtype, "rngs": rngs}
        if not head_dim or unknown_orders(orders) or (not project and dim % len(orders)):
            raise ValueError(f"{orders=} must be of {tuple(ORDERS)}, at least one and at most {dim=}, a divisor of it without projection")
        self.orders, self.threshold, self.implementation = tuple(orders), threshold, implementation
        self.in_proj = Linear(dim, 2 * dim, use_bias=False, **options)
        self.conv2d = Conv(dim, dim, kernel_size=3, groups=dim, kernel_init=torch_uniform, **options)
        self.to_heads = Linear(dim, head_dim * len(orders), use_bias=False, **options)
        rank = math.ceil(head_dim / 16)
        self.heads = nnx.List([SelectiveScan(head_dim, groups=_ROUTES, state_dim=state_dim, rank=rank, **options) for _ in orders])
        self.cat_norm = LayerNorm(head_dim * len(orders), eps=_EPS, **options) if project else None
        self.proj = Linear(head_dim * len(orders), dim, use_bias=False, **options) if project else None
        self.out_norm = LayerNorm(dim, eps=_EPS, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x, gate = jnp.split(self.in_proj(x), 2, -1)
        y = self.scans(jax.nn.silu(self.conv2d(x)))
        return self.out_norm(y) * jax.nn.silu(gate)

    def scans(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The results of the heads on a map, side by side and projected."""
        b, h, w, _ = x.shape
        routes = np.stack([scan_order(order, h, w) for order in self.orders])  # [heads, 4, n]
        parts = jnp.split(self.to_heads(x).reshape(b, h * w, -1), len(self.orders), -1)
        tokens = jnp.concatenate([jnp.take(part, route, axis=1) for part, route in zip(parts, routes, strict=True)], 1)
        y = self._scanned(tokens, parts, routes).reshape(b, *routes.shape, -1)  # [b, heads, 4, n, head_dim]
        y = jnp.take_along_axis(y, np.argsort(routes, -1)[None, ..., None], axis=3)
        y = self._weighed(y.astype(jnp.float32)).astype(x.dtype).transpose(0, 2, 1, 3).reshape(b, h, w, -1)
        return y if self.proj is None or self.cat_norm is None else self.proj(self.cat_norm(y))

    def _scanned(self, tokens: Float[Array, "b groups n d"], parts: list[Array], routes: np.ndarray) -> Float[Array, "b groups n d"]:
        """One scan of all routes of all heads."""
        controls, rank, state_dim = [], self.heads[0].rank, self.heads[0].state_dim
        for head, part, route in zip(self.heads, parts, routes, strict=True):
            of_head = head.project(part)
            controls += [of_head[:, route[i], i] for i in range(_ROUTES)]
        steps, b, c = jnp.split(jnp.stack(controls, 1), (rank, rank + state_dim), axis=-1)

        def joined(name: str) -> Array:
            return jnp.concatenate([getattr(head, name)[...] for head in self.heads])

        return selective_scan(
            tokens,
            jnp.einsum("bgnr,gdr->bgnd", steps, joined("dt_weight").astype(steps.dtype)),
            -jnp.exp(joined("a_log")),
            b,
            c,
            skip=joined("skip"),
            dt_bias=joined("dt_bias"),
            implementation=self.implementation,
        )

    def _weighed(self, y: Float[Array, "b heads routes n d"]) -> Float[Array, "b heads n d"]:
        variance = y.var(2, ddof=1)
        positive = variance > 0  # the root has no gradient at 0
        deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
        variation = deviation / ((y - y.min(2, keepdims=True)).mean(2) + _EPS)
        return y.sum(2) * jax.nn.relu(variation - self.threshold)


def unknown_orders(orders: tuple[str, ...]) -> list[str]:
    """Returns the names that are not in ORDERS."""
    return [order for order in orders if order not in ORDERS]

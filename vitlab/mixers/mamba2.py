"""Mamba-2's block (Dao and Gu, arXiv:2405.21060, section 7), over one or four orders of a map."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Ratio, Side
from vitlab.layers.causal_conv import CausalConv
from vitlab.layers.initial import ones_init, step_bias
from vitlab.layers.linear import Linear
from vitlab.layers.norm import RMSNorm
from vitlab.layers.roles import declare
from vitlab.layers.ssd import ssd

EPS = 1e-5  # epsilon of the RMSNorm


class Mamba2(nnx.Module):
    """One projection to gate, values, controls and steps; causal convolution; SSD; gated norm.

    Each head decays at a single rate, and groups of heads share what a token writes and reads. As
    in the authors' code the gate comes before the norm. With the orders "rows" it is their block,
    which reads a map by rows. "cross" is ours: the mean over the four orders of VMamba (rows,
    columns, both backwards), which share all parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        state_dim: Count = 64,  # numbers that a channel remembers
        head_dim: Count | None = None,  # channels of a head; None: all that `num_heads` gives, or 64
        ratio: Ratio = 2.0,  # channels that are scanned / dim
        groups: Count = 1,  # groups of heads
        kernel_size: Side = 4,  # tokens that the causal convolution sees
        orders: Literal["rows", "cross"] = "cross",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = int(ratio * dim)
        head_dim = head_dim or (hidden // num_heads if num_heads else 64)
        if not head_dim or hidden % head_dim or hidden // head_dim % groups:
            raise ValueError(f"{hidden} channels must be heads of {head_dim=}, a multiple of {groups=} in number")
        self.heads, self.head_dim, self.groups, self.state_dim, self.orders = hidden // head_dim, head_dim, groups, state_dim, orders
        controls = 2 * groups * state_dim
        self.in_proj = Linear(dim, 2 * hidden + controls + self.heads, use_bias=False, dtype=dtype, rngs=rngs)
        self.conv1d = CausalConv(hidden + controls, kernel_size=kernel_size, dtype=dtype, rngs=rngs)
        self.dt_bias = declare(nnx.Param(step_bias(0.001, 0.1)(rngs.params(), (self.heads,))), "dynamics")
        rates = np.log(np.linspace(1, 16, self.heads, dtype=np.float32))  # the authors draw rates in this range
        self.a_log = declare(nnx.Param(jnp.asarray(rates)), "dynamics")
        self.skip = declare(nnx.Param(ones_init(rngs.params(), (self.heads,))), "dynamics")
        self.norm = RMSNorm(hidden, eps=EPS, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(hidden, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        hidden = self.heads * self.head_dim
        z, tokens = jnp.split(self.in_proj(x), (hidden,), axis=-1)
        rows = tokens.reshape(b, h * w, -1)
        if self.orders == "rows":
            y = self._scan(rows)
        else:
            columns = tokens.swapaxes(1, 2).reshape(b, h * w, -1)
            outs = self._scan(jnp.concatenate([rows, columns, rows[:, ::-1], columns[:, ::-1]], 0)).reshape(2, 2, b, h * w, hidden)
            both = outs[0] + outs[1, :, :, ::-1]
            y = (both[0] + both[1].reshape(b, w, h, hidden).swapaxes(1, 2).reshape(b, h * w, hidden)) / 4
        return self.out_proj(self.norm(y.reshape(z.shape).astype(z.dtype) * jax.nn.silu(z)))

    def _scan(self, tokens: Float[Array, "b n controls"]) -> Float[Array, "b n hidden"]:
        mixed, dt = jnp.split(tokens, (tokens.shape[-1] - self.heads,), axis=-1)
        mixed = jax.nn.silu(self.conv1d(mixed))
        x, b, c = jnp.split(mixed, (self.heads * self.head_dim, mixed.shape[-1] - self.groups * self.state_dim), axis=-1)
        x = x.reshape(*x.shape[:2], self.heads, self.head_dim).astype(jnp.float32)
        b, c = (v.reshape(*v.shape[:2], self.groups, self.state_dim) for v in (b, c))
        step = jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...])
        y = ssd(x * step[..., None], -jnp.exp(self.a_log[...]) * step, b, c) + self.skip[...][:, None] * x
        return y.reshape(*y.shape[:2], -1)

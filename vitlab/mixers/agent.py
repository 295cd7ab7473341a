"""Agent attention (Han et al., arXiv:2312.08874, section 3.2): attention through few tokens."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.initial import normal_init, torch_uniform
from vitlab.layers.linear import Linear
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.resize import resize_axis
from vitlab.layers.roles import declare

_COARSE = 7  # rows and columns of the coarse position biases


class AgentAttention(nnx.Module):
    """Agents attend to all tokens, then all tokens attend to the agents, at linear cost.

    The agents are means of the queries over a square grid. Each of the two softmax attentions has a
    position bias for every agent and position: a coarse map, enlarged (bilinear), plus one for the
    row and one for the column. Row and column biases are stored for maps of `grid` and resized
    (linear) for others, as in the authors' code when it loads a checkpoint. A depthwise convolution
    of the values is added to the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_agents: Count = 49,  # a square number
        grid: tuple[Side, Side] = (14, 14),  # rows and columns of the map for which biases are stored
        num_class_tokens: CountOrZero = 0,  # tokens before the map; they are keys and queries, but agents are pooled from the map only
        fused: bool = True,  # True: one projection for queries, keys and values; False: queries have their own (PVT variants)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.pool_size = math.isqrt(num_agents)
        if self.pool_size**2 != num_agents:
            raise ValueError(f"{num_agents=} must be a square number")
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs) if fused else None
        self.q = None if fused else Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = None if fused else Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.dwc = Conv(dim, dim, kernel_size=3, groups=dim, kernel_init=torch_uniform, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

        def table(*shape: int) -> nnx.Param:
            return declare(nnx.Param(normal_init(rngs.params(), (num_heads, num_agents, *shape))), "position")

        # Agents are queries for the biases an, ah, aw, ac and keys for na, ha, wa, ca. In each list
        # the biases are the coarse map, rows, columns and class tokens.
        self.an_bias, self.na_bias = table(_COARSE, _COARSE), table(_COARSE, _COARSE)
        self.ah_bias, self.ha_bias = table(grid[0]), table(grid[0])
        self.aw_bias, self.wa_bias = table(grid[1]), table(grid[1])
        self.ac_bias = table(num_class_tokens) if num_class_tokens else None
        self.ca_bias = table(num_class_tokens) if num_class_tokens else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        return self.tokens(x.reshape(b, h * w, c), (h, w)).reshape(b, h, w, c)

    def tokens(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        """Mixes class tokens followed by the tokens of a map in row-major order.

        The depthwise convolution covers the map's tokens only.
        """
        b, n, d = x.shape
        first = n - grid[0] * grid[1]
        if self.q is not None and self.kv is not None:
            q, k, v = self.q(x), *jnp.split(self.kv(x), 2, -1)
        else:
            assert self.qkv is not None
            q, k, v = jnp.split(self.qkv(x), 3, -1)
        agents = adaptive_average_pool(q[:, first:].reshape(b, *grid, d), (self.pool_size, self.pool_size))
        local = self.dwc(v[:, first:].reshape(b, *grid, d)).reshape(b, -1, d)
        agents, q, k, v = (y.reshape(b, -1, self.num_heads, self.head_dim) for y in (agents, q, k, v))
        asking = position_bias(self.an_bias, self.ah_bias, self.aw_bias, self.ac_bias, grid)
        asked = position_bias(self.na_bias, self.ha_bias, self.wa_bias, self.ca_bias, grid)
        found = dot_product_attention(agents, k, v, bias=asking[None])
        out = dot_product_attention(q, agents, found, bias=asked.swapaxes(1, 2)[None]).reshape(b, n, d)
        return self.proj(out.at[:, first:].add(local))


def position_bias(
    coarse: nnx.Param, rows: nnx.Param, cols: nnx.Param, classes: nnx.Param | None, grid: tuple[int, int]
) -> Float[Array, "heads agents n"]:
    """Returns the bias of each agent at each token of a map of `grid`, class tokens first."""
    h, w = grid
    bias = resize_axis(resize_axis(coarse[...], 2, h), 3, w)
    bias = bias + resize_axis(rows[...], 2, h)[..., None] + resize_axis(cols[...], 2, w)[:, :, None]
    flat = bias.reshape(*bias.shape[:2], h * w)
    return flat if classes is None else jnp.concatenate((classes[...], flat), -1)

"""Union of experts (UoE, Yang et al., arXiv:2503.02495): attention and perceptron cut into experts
that take some of the tokens each.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import head_dim_of
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import lecun_normal, zeros_init
from vitlab.layers.linear import Linear
from vitlab.layers.rope import rotate, sequence_rotation


class UnionAttention(nnx.Module):
    """Selective multi-head attention: an expert is a head, and its tokens attend to each other only
    (section 3.3).

    Follows the authors' code: the second half of each expert's share of the input is turned by its
    place in the row-major sequence and put first, a router chooses `top_k` experts a token, every
    expert takes as many tokens of each image as the busiest one of the batch, those of the highest
    route, and the routes do not weigh the output. Images of a batch therefore touch each other. How
    many tokens that is follows from values: here all tokens are computed and the others masked, so
    nothing is saved.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 2,  # experts
        top_k: int = 1,  # experts of a token
        eps: float = 1.0,  # added to the sum of the routes of a token
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        head_dim = head_dim_of(dim, num_heads)
        if head_dim % 4 or not 0 < top_k <= num_heads:
            raise ValueError(f"the width of a head, {dim=} / {num_heads=}, must be a multiple of 4, and {top_k=} 1 to {num_heads=}")
        self.num_heads, self.head_dim, self.top_k, self.eps = num_heads, head_dim, top_k, eps
        self.gate = Linear(dim, num_heads, dtype=dtype, rngs=rngs)
        self.qkv_kernel = nnx.Param(lecun_normal(rngs.params(), (num_heads, dim, 3 * head_dim)))
        self.qkv_bias = nnx.Param(zeros_init(rngs.params(), (num_heads, 3 * head_dim)))
        self.out_kernel = nnx.Param(lecun_normal(rngs.params(), (num_heads, head_dim, dim)))
        self.out_bias = nnx.Param(zeros_init(rngs.params(), (num_heads, dim)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        plain, turned = jnp.split(x.reshape(b, h * w, self.num_heads, self.head_dim), 2, -1)
        turned = rotate(turned, sequence_rotation(h * w, self.head_dim // 2))
        tokens = jnp.concatenate((turned, plain), -1).reshape(b, h * w, c)
        routes = best_routes(self.gate(tokens), self.top_k)
        routes = routes / (routes.sum(-1, keepdims=True) + self.eps)
        rank = jnp.argsort(jnp.argsort(-routes, axis=1, stable=True), axis=1)
        chosen = (rank < (routes > 0).sum(1).max()).transpose(0, 2, 1)  # [b, experts, tokens]
        qkv = jnp.einsum("bnd,edk->benk", tokens, self.qkv_kernel[...].astype(x.dtype))
        q, k, v = jnp.split(qkv + self.qkv_bias[...].astype(x.dtype)[None, :, None], 3, -1)
        logits = jnp.einsum("benk,bemk->benm", q, k, preferred_element_type=jnp.float32) * self.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(chosen[:, :, None], logits, -jnp.inf)).astype(x.dtype)
        out = jnp.einsum("benk,ekd->bend", weights @ v, self.out_kernel[...].astype(x.dtype))
        out = out + self.out_bias[...].astype(x.dtype)[None, :, None]
        return jnp.where(chosen[..., None], out, 0).sum(1).reshape(x.shape)


class UnionMlp(nnx.Module):
    """A perceptron whose hidden units are cut into experts, each of which takes `share` of the
    tokens of an image (section 3.4).

    Follows the authors' code: a token's routes are its `top_k` largest, divided by their sum over
    the batch (plus `eps`), so that images of a batch touch each other; an expert takes the tokens
    of the highest routes, and the routes do not weigh the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_dim: int,
        num_experts: int = 4,
        top_k: int = 2,
        eps: float = 1.0,  # added to the sum of the routes over the batch
        share: float = 0.5,  # share of the tokens that an expert takes
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if mlp_dim % num_experts or not 0 < top_k <= num_experts:
            raise ValueError(f"{mlp_dim=} must be a multiple of {num_experts=}, and {top_k=} 1 to {num_experts=}")
        hidden = mlp_dim // num_experts
        self.top_k, self.eps, self.share = top_k, eps, share
        self.gate = Linear(dim, num_experts, dtype=dtype, rngs=rngs)
        self.in_kernel = nnx.Param(lecun_normal(rngs.params(), (num_experts, dim, hidden)))
        self.in_bias = nnx.Param(zeros_init(rngs.params(), (num_experts, hidden)))
        self.out_kernel = nnx.Param(lecun_normal(rngs.params(), (num_experts, hidden, dim)))
        self.out_bias = nnx.Param(zeros_init(rngs.params(), (num_experts, dim)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = x.reshape(b, h * w, c)
        routes = best_routes(self.gate(tokens), self.top_k)
        routes = routes / (routes.sum(0, keepdims=True) + self.eps)
        places = jax.lax.top_k(routes.transpose(0, 2, 1), max(1, int(self.share * h * w)))[1]  # [b, experts, tokens]
        taken = jnp.take_along_axis(tokens[:, None], places[..., None], axis=2)
        hidden = jnp.einsum("bend,edk->benk", taken, self.in_kernel[...].astype(x.dtype)) + self.in_bias[...].astype(x.dtype)[None, :, None]
        out = jnp.einsum("benk,ekd->bend", gelu(hidden), self.out_kernel[...].astype(x.dtype))
        out = out + self.out_bias[...].astype(x.dtype)[None, :, None]
        return jnp.zeros_like(tokens).at[jnp.arange(b)[:, None, None], places].add(out).reshape(x.shape)


def best_routes(logits: Float[Array, "b n experts"], top_k: int) -> Float[Array, "b n experts"]:
    """Softmax over the experts, float32, but for the `top_k` largest 0."""
    routes = jax.nn.softmax(logits.astype(jnp.float32))
    best, experts = jax.lax.top_k(routes, top_k)
    return jnp.put_along_axis(jnp.zeros_like(routes), experts, best, axis=-1, inplace=False)

"""Transformer block split over a mesh axis `tensor` (Megatron-LM, arXiv:1909.08053, section 3).

Each device has some of the heads and some of the MLP's hidden units, and all tokens of its images.
Contributions to the residual stream are summed over devices once after attention and once after the
MLP, in the backward pass likewise.

Departs from the paper: the fused projection is stored in parts along its rows. Its columns are
[3, heads, head_dim], as in timm, and an even cut of the columns would not fall between heads.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vitlab.layers.linear import Linear

# Regex of a parameter's name -> for each of its dimensions the mesh axis that splits it. Parameters
# without an entry are whole on every device. Applies to families whose attention projects by
# `project_qkv`.
TENSOR_SPLIT: Mapping[str, tuple[str | None, ...]] = {
    r"attn/qkv/kernel$": ("tensor", None),
    r"attn/rel_pos_bias$": ("tensor", None, None),  # [heads, rows, columns]
    r"attn/proj/kernel$": ("tensor", None),
    r"mlp/fc1/kernel$": (None, "tensor"),
    r"mlp/fc1/bias$": ("tensor",),
    r"mlp/fc2/kernel$": ("tensor", None),
}


def project_qkv(qkv: Linear, x: Float[Array, "*b dim"], *, num_heads: int, add_bias: bool = True) -> Float[Array, "*b 3 heads head_dim"]:
    """Computes the fused projection, laid out [3, heads, head_dim].

    Under a mesh with an axis `tensor` that divides the heads, each device computes its own heads.
    To do so, devices exchange rows of the kernel for columns (one all-to-all of a device's share of
    the kernel, and one of its gradient), and no activations.

    Args:
      qkv: The linear layer, [dim, 3 * heads * head_dim].
      x: Tokens, of any leading dimensions.
      num_heads: Number of heads.
      add_bias: False: the caller adds the projection's bias.
    """
    count = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    shape = (*x.shape[:-1], 3, num_heads, qkv.out_features // (3 * num_heads))
    whole = count == 1 or num_heads % count != 0
    if whole and add_bias:
        return qkv(x).reshape(shape)
    bias = None if qkv.bias is None or not add_bias else qkv.bias[...]
    x, kernel, bias = qkv.promote_dtype((x, qkv.kernel[...], bias), dtype=qkv.dtype)
    if whole:
        return qkv.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))).reshape(shape)
    kernel = _split(_split(kernel, "tensor", None).reshape(x.shape[-1], 3, -1), None, None, "tensor")
    out = jnp.einsum("...i,ipo->...po", x, kernel)
    if bias is not None:
        out += _split(bias.reshape(3, -1), None, "tensor").reshape((1,) * (x.ndim - 1) + out.shape[-2:])
    return out.reshape(shape)


def _split(x: Array, *axes: str | None) -> Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))

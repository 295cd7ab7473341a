"""The affine map over the last axis, with the initialisation of vision transformers."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vitlab.layers.initial import normal_init, zeros_init
from vitlab.layers.product import dot_general
from vitlab.layers.widths import check_widths


class Linear(nnx.Linear):
    """x @ kernel + bias, computed in `dtype`; parameters are float32.

    The kernel is initialised as normal(0.02), the bias as zero.
    """

    def __init__(self, in_dim: int, out_dim: int, *, use_bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_widths(in_dim=in_dim, out_dim=out_dim)
        super().__init__(
            in_dim,
            out_dim,
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=normal_init,
            bias_init=zeros_init,
            dot_general=dot_general,
            rngs=rngs,
        )

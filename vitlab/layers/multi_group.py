"""Pointwise convolution trained as a sum of grouped ones (FMViT, arXiv:2311.05707)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.linear import Linear


class MultiGroupLinear(nnx.Module):
    """Sum over group counts of a grouped pointwise convolution with batch norm.

    Once fused, it is one linear map with a bias.
    """

    def __init__(self, dim: int, out_dim: int, *, groups: tuple[int, ...] = (1, 2, 4), dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        for count in groups:
            if dim % count or out_dim % count:
                raise ValueError(f"{dim=} and {out_dim=} must be multiples of each of {groups=}")
        self.groups, self.dtype = groups, dtype
        self.branches = nnx.List([ConvNorm(dim, out_dim, groups=count, dtype=dtype, rngs=rngs) for count in groups])
        self.fused = nnx.List([])  # holds the one linear map once fused

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c2"]:
        if self.fused:
            return self.fused[0](x)
        first, *others = (branch(x, train=train) for branch in self.branches)
        return sum(others, start=first)

    def fuse(self) -> None:
        """Folds norms and groups into one kernel, in place."""
        if self.fused:
            return
        dim, out_dim = self.branches[0].conv.in_features, self.branches[0].conv.out_features
        kernel, bias = jnp.zeros((dim, out_dim)), jnp.zeros(out_dim)
        for count, branch in zip(self.groups, self.branches, strict=True):
            branch.fuse()
            part = branch.conv.kernel[...][0, 0]  # [dim / count, out_dim]
            for i in range(count):
                cols = slice(i * out_dim // count, (i + 1) * out_dim // count)
                kernel = kernel.at[i * dim // count : (i + 1) * dim // count, cols].add(part[:, cols])
            assert branch.conv.bias is not None
            bias += branch.conv.bias[...]
        linear = Linear(dim, out_dim, dtype=self.dtype, rngs=nnx.Rngs(0))
        linear.kernel[...], linear.bias = kernel, nnx.Param(bias)
        self.branches, self.fused = nnx.List([]), nnx.List([linear])

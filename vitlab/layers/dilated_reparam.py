"""Large depthwise convolution trained with dilated branches (UniRepLKNet, arXiv:2311.15599)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv_norm import ConvNorm

# Kernel size -> (kernel size, dilation) of each branch, as in the authors' DilatedReparamBlock.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class DilatedReparam(nnx.Module):
    """Sum of depthwise convolutions with batch norm: one large, others smaller and dilated.

    Once fused, it is one convolution with a bias.
    """

    def __init__(self, dim: int, *, kernel_size: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if kernel_size not in BRANCHES:
            raise ValueError(f"{kernel_size=} must be one of {sorted(BRANCHES)}, whose branches are published")
        self.origin = ConvNorm(dim, dim, kernel_size=kernel_size, groups=dim, dtype=dtype, rngs=rngs)
        self.dilations = {f"k{k}_{dilation}": dilation for k, dilation in BRANCHES[kernel_size]}
        self.branches = nnx.Dict(
            {
                f"k{k}_{dilation}": ConvNorm(dim, dim, kernel_size=k, dilation=dilation, groups=dim, dtype=dtype, rngs=rngs)
                for k, dilation in BRANCHES[kernel_size]
            }
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        out = self.origin(x, train=train)
        for branch in self.branches.values():
            out = out + branch(x, train=train)
        return out

    def fuse(self) -> None:
        """Folds norms and branches into the large kernel, in place.

        A dilated branch adds its taps to those of the large kernel at the same positions.
        """
        self.origin.fuse()
        kernel, bias = self.origin.conv.kernel, self.origin.conv.bias
        assert bias is not None
        middle = kernel.shape[0] // 2
        for name, branch in self.branches.items():
            branch.fuse()
            small, dilation = branch.conv.kernel[...], self.dilations[name]
            reach = dilation * (small.shape[0] // 2)
            taps = slice(middle - reach, middle + reach + 1, dilation)
            kernel[...] = kernel[...].at[taps, taps].add(small)
            assert branch.conv.bias is not None
            bias[...] = bias[...] + branch.conv.bias[...]
        self.branches = nnx.Dict({})

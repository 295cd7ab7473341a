"""Convolution with batch norm, and folding a norm into a neighbouring linear map for deployment."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv import Conv
from vitlab.layers.initial import full


class ConvNorm(nnx.Module):
    """norm(conv(x)); the convolution has a bias only once the norm is folded into it."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,  # groups of channels; in_dim: depthwise
        zero_init: bool = False,  # True: the norm's scale starts at 0, so that a residual branch starts as zero
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_dim,
            out_dim,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm: BatchNorm | None = BatchNorm(out_dim, eps=eps, dtype=dtype, rngs=rngs)
        if zero_init:
            self.norm.scale = nnx.Param(full(out_dim, 0.0))

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 c2"]:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x, train=train)

    def fuse(self) -> None:
        """Folds the norm into the convolution, in place."""
        if self.norm is not None:
            fold_into_previous(self.norm, self.conv)
            self.norm = None


def affine_of(norm: BatchNorm) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """Returns factor and offset per channel of a batch norm in evaluation."""
    return norm.affine_map(norm.mean[...], norm.var[...])


def fold_into_previous(norm: BatchNorm, linear: nnx.Conv | nnx.Linear) -> None:
    """Changes `linear`, in place, so that linear(x) is the former norm(linear(x)) in evaluation."""
    factor, offset = affine_of(norm)
    bias = 0 if linear.bias is None else linear.bias[...] * factor
    linear.kernel[...] = linear.kernel[...] * factor.reshape((1,) * (linear.kernel[...].ndim - 1) + (-1,))
    linear.bias, linear.use_bias = nnx.Param(offset + bias), True


def fold_into_next(norm: BatchNorm, linear: nnx.Conv | nnx.Linear) -> None:
    """Changes `linear`, in place, so that linear(x) is the former linear(norm(x)) in evaluation.

    Raises:
      ValueError: `linear` is a convolution that is not pointwise, or grouped.
    """
    factor, offset = affine_of(norm)
    kernel = linear.kernel[...]
    if kernel.size != factor.size * kernel.shape[-1]:
        raise ValueError(
            f"a kernel of shape {kernel.shape} must be pointwise and not grouped: a norm of {factor.size} channels stands before it"
        )
    bias = jnp.zeros(kernel.shape[-1]) if linear.bias is None else linear.bias[...]
    linear.bias, linear.use_bias = nnx.Param(bias + offset @ kernel.reshape(factor.size, -1)), True
    linear.kernel[...] = factor[:, None].reshape((1,) * (kernel.ndim - 2) + (-1, 1)) * kernel


def fuse_conv_norms(model: nnx.Module) -> None:
    """Folds the norm of every `ConvNorm` inside the model, in place."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, ConvNorm):
            module.fuse()

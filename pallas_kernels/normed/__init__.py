"""Products of a normalised map: LayerNorm and the projection or the perceptron that reads it, as one
operator each.

Both take maps whose last axis is normalised and multiplied; what lies between the norm and the
result stays on chip, and the backward pass computes it again from the map. There are kernels for
TPUs only: `unsupported_reason` says where they do not apply, and callers then compute as before.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.normed import pallas_tpu
from pallas_kernels.normed.rows import Layout
from pallas_kernels.sharding import TENSOR, automatic_axes, indivisible
from pallas_kernels.tpu import usable_vmem, wrong_platform

__all__ = ["Norm", "norm_linear", "norm_mlp", "unsupported_reason"]


class Norm(NamedTuple):
    """LayerNorm's parameters."""

    scale: Float[Array, " dim"]
    bias: Float[Array, " dim"]
    eps: float


def norm_linear(
    x: Float[Array, "b *n dim"],
    kernel: Float[Array, "dim out"],
    bias: Float[Array, " out"] | None,
    *,
    norm: Norm | None,
    passes: bool = False,
    interpret: bool = False,
):
    """norm(x) @ kernel + bias; statistics, sums and gradients of the parameters are float32.

    Args:
      x: A map in the dtype that products are computed in.
      kernel: As all parameters, float32; rounded to the dtype of x.
      bias: Added to the product before it is rounded, or None.
      norm: LayerNorm over the last axis before the product, or None.
      passes: Return x, too, for a residual stream that goes on with it: the kernel of the backward
        pass then adds the stream's gradient.
      interpret: Run the kernels in an interpreter, for tests.

    Returns:
      The projection, [b, *n, out], in the dtype of x; with `passes` a pair of that and x.
    """
    options = {"eps": norm.eps if norm else 0.0, "residual": "pass" if passes else "none", "interpret": interpret}
    return pallas_tpu.run(x, norm and norm[:2], ((kernel, bias),), **options)


def norm_mlp(
    x: Float[Array, "b *n dim"],
    kernel1: Float[Array, "dim hidden"],
    bias1: Float[Array, " hidden"] | None,
    kernel2: Float[Array, "hidden dim"],
    bias2: Float[Array, " dim"] | None,
    *,
    norm: Norm | None,
    adds: bool = False,
    interpret: bool = False,
) -> Float[Array, "b *n dim"]:
    """gelu(norm(x) @ kernel1 + bias1) @ kernel2 + bias2, with the exact GELU (arXiv:1606.08415); with
    `adds`, the sum of x and that.

    Other arguments and the result are as those of `norm_linear`. GELU departs from x * Phi(x) by less than a
    third of bfloat16's rounding, see `pallas_kernels.normed.gelu`.
    """
    options = {"eps": norm.eps if norm else 0.0, "residual": "add" if adds else "none", "interpret": interpret}
    return pallas_tpu.run(x, norm and norm[:2], ((kernel1, bias1), (kernel2, bias2)), **options)


def unsupported_reason(shape: Sequence[int], dtype: DTypeLike, widths: Sequence[int], *, interpret: bool = False) -> str | None:
    """Why the kernels cannot run here, or None.

    Args:
      shape: That of the map.
      dtype: That products are computed in.
      widths: What each product gives: (out,) of `norm_linear`, (hidden, dim) of `norm_mlp`.
      interpret: Whether the kernels would run in an interpreter.
    """
    if reason := wrong_platform(interpret=interpret) or indivisible(shape[0]):
        return reason
    if automatic_axes().get(TENSOR, 1) > 1:
        return "parameters may be split over the mesh axis `tensor`"
    layout = Layout.of(shape, dtype, widths)
    return layout if isinstance(layout, str) else layout.unsupported_reason(usable_vmem())

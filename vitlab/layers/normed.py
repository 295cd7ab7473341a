"""A norm and the products that read it, as one kernel where there is one: what lies between them
stays on chip.
"""

from jaxtyping import Array, Float

from pallas_kernels.normed import Norm, norm_linear, norm_mlp, unsupported_reason
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm


def is_fused(x: Float[Array, "*b dim"], norm: LayerNorm | None, *layers: Linear) -> bool:
    """Whether a kernel takes the map through the norm and one linear layer, or two with GELU
    between them.
    """
    dtype = layers[0].dtype or x.dtype
    same = x.dtype == dtype and (norm is None or norm.out_dtype == dtype)
    return same and unsupported_reason(x.shape, dtype, [layer.out_features for layer in layers]) is None


def fused_linear(
    x: Float[Array, "b *n dim"], norm: LayerNorm | None, layer: Linear, *, passes: bool = False
) -> tuple[Float[Array, "b *n out"], Float[Array, "b *n dim"]]:
    """layer(norm(x)), or layer(x), by the kernel; and x. Only where `is_fused`.

    With `passes` the kernel of the backward pass adds the gradient of the x that is returned.
    """
    out = norm_linear(x, *_weights(layer), norm=_parameters(norm), passes=passes)
    return out if passes else (out, x)


def fused_mlp(x: Float[Array, "b *n dim"], norm: LayerNorm | None, fc1: Linear, fc2: Linear, *, adds: bool) -> Float[Array, "b *n dim"]:
    """fc2(gelu(fc1(norm(x)))), or of x, by the kernel; with `adds` x is added. Only where
    `is_fused`.
    """
    return norm_mlp(x, *_weights(fc1), *_weights(fc2), norm=_parameters(norm), adds=adds)


def _parameters(norm: LayerNorm | None) -> Norm | None:
    if norm is None:
        return None
    assert norm.scale is not None and norm.bias is not None
    return Norm(norm.scale[...], norm.bias[...], norm.epsilon)


def _weights(layer: Linear) -> tuple[Array, Array | None]:
    return layer.kernel[...], None if layer.bias is None else layer.bias[...]

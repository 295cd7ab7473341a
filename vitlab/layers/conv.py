"""Convolution over maps, with torch's padding."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vitlab.layers.conv_forms import conv_general_dilated
from vitlab.layers.initial import he_normal, zeros_init
from vitlab.layers.widths import check_widths


class Conv(nnx.Conv):
    """Convolution [b, h, w, in] -> [b, h', w', out].

    `kernel` is [k, k, in / groups, out], `bias` [out]. Both ends of an axis get equally many zeros,
    as in torch; padding "same" is TensorFlow's, with more zeros at the end.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | Literal["same"] | None = None,  # zeros per end of an axis; None: dilation * (kernel_size - 1) // 2
        dilation: int = 1,
        groups: int = 1,  # groups of channels; in_dim: depthwise
        use_bias: bool = True,
        kernel_init: nnx.Initializer = he_normal,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_widths(in_dim=in_dim, out_dim=out_dim, groups=groups)
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if padding is None:
            padding = (dilation * (size[0] - 1) // 2, dilation * (size[1] - 1) // 2)
        pads = (padding, padding) if isinstance(padding, int) else padding
        super().__init__(
            in_dim,
            out_dim,
            size,
            stride,
            padding="SAME" if pads == "same" else [(int(p), int(p)) for p in pads],
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=zeros_init,
            conv_general_dilated=conv_general_dilated,
            dtype=dtype,
            rngs=rngs,
        )

"""Head of the dense prediction transformer (DPT, Ranftl et al., arXiv:2103.13413, section 3)."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, map_size, plain_reason, pyramid_reason
from vitlab.heads.pixel_shuffle import Upsample
from vitlab.layers.conv import Conv
from vitlab.layers.initial import lecun_normal
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare

_FACTORS = (4, 2, 1, 0.5)  # factors by which maps of a trunk without stages are resized, first map first


def four_maps_reason(strides: Strides) -> str | None:
    """Returns why the maps are neither four of one stride nor four of doubling strides, or None."""
    if len(strides) != 4:
        return f"strides={tuple(strides)} must name four maps"
    return pyramid_reason(strides) if plain_reason(strides) else None


class DPT(nnx.Module):
    """Reassembles four maps into a pyramid, fuses it from coarse to fine, and predicts a dense map.

    With a stride of 16 the result has half the image's sides. Reassemble (eq. 2-4, without readout
    token): a linear map to `reassemble_dims`, then, for a trunk without stages, a transposed
    convolution by 4 and by 2, no resizing, and a strided convolution by 1/2; maps of a trunk with
    stages keep their size. Fusion (figure 1, right; RefineNet, arXiv:1611.06612): y_i =
    project(double(unit(unit(x_i) + y_{i+1}))), without the sum at the coarsest level. Output:
    conv3x3, conv3x3, ReLU, linear. The caller enlarges the result to the image's size, before or
    after the loss; the authors double it between the two convolutions.
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(four_maps_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 256,
        reassemble_dims: Sequence[int] = (96, 192, 384, 768),  # widths: DPT-Base's; DPT-Large has 256, 512, 1024, 1024
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        if len(reassemble_dims) != 4:
            raise ValueError(f"reassemble_dims={tuple(reassemble_dims)} must have one entry a map, 4")
        factors = (1,) * 4 if plain_reason(strides) else _FACTORS
        self.stride = strides[0] / factors[0] / 2
        self.reassemble = nnx.List(
            [
                Reassemble(in_dim, mid_dim, dim, factor=factor, dtype=dtype, rngs=rngs)
                for in_dim, mid_dim, factor in zip(dims, reassemble_dims, factors, strict=True)
            ]
        )
        self.fusions = nnx.List([Fusion(dim, sums=i < 3, dtype=dtype, rngs=rngs) for i in range(4)])
        self.conv1 = Conv(dim, max(1, dim // 2), kernel_size=3, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(max(1, dim // 2), 32, kernel_size=3, dtype=dtype, rngs=rngs)
        self.conv3 = declare(Conv(32, out_dim, kernel_size=1, kernel_init=lecun_normal, rngs=rngs), "head")

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns [b, h, w, out_dim], float32, at twice the finest reassembled map's size."""
        del train, rngs
        maps = [part(x) for part, x in zip(self.reassemble, features, strict=True)]
        sizes = [(2 * maps[0].shape[1], 2 * maps[0].shape[2]), *map(map_size, maps)]
        y = self.fusions[3](maps[3], None, sizes[3])
        for i in (2, 1, 0):
            y = self.fusions[i](maps[i], y, sizes[i])
        return self.conv3(jax.nn.relu(self.conv2(self.conv1(y))))


class Reassemble(nnx.Module):
    """A linear map, resizing by `factor`, and a 3x3 convolution to the fusion's width."""

    def __init__(self, in_dim: int, mid_dim: int, dim: int, *, factor: int | float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.project = Conv(in_dim, mid_dim, kernel_size=1, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)
        if factor > 1:
            self.resize = Upsample(mid_dim, mid_dim, factor=int(factor), dtype=dtype, rngs=rngs)
        elif factor < 1:
            self.resize = Conv(mid_dim, mid_dim, kernel_size=3, stride=2, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)
        else:
            self.resize = None
        self.conv = Conv(mid_dim, dim, kernel_size=3, use_bias=False, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = self.project(x)
        return self.conv(x if self.resize is None else self.resize(x))


class ResidualUnit(nnx.Module):
    """x + conv(relu(conv(relu(x)))), both convolutions 3x3."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv1 = Conv(dim, dim, kernel_size=3, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim, dim, kernel_size=3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """project(resize(unit2(unit1(x) + above))), resized with aligned corners, as the authors do.

    Without `sums` the map is the coarsest and has no unit1; the authors' checkpoints contain one
    there that they do not use.
    """

    def __init__(self, dim: int, *, sums: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.unit1 = ResidualUnit(dim, dtype=dtype, rngs=rngs) if sums else None
        self.unit2 = ResidualUnit(dim, dtype=dtype, rngs=rngs)
        self.project = Conv(dim, dim, kernel_size=1, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], above: Float[Array, "b h w c"] | None, size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 c"]:
        x = x if self.unit1 is None or above is None else self.unit1(x) + above
        return self.project(resize_bilinear(self.unit2(x), size, align_corners=True))

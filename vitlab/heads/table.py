"""All heads by name, and any of them on any trunk whose maps allow it."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vitlab.heads.attention_pool import AttentionPool
from vitlab.heads.center_point import CenterPoint
from vitlab.heads.density import Density
from vitlab.heads.dpt import DPT
from vitlab.heads.fcn import FCN
from vitlab.heads.linear import LinearHead
from vitlab.heads.maps import Maps, Strides, check_maps, order_reason, plain_reason
from vitlab.heads.pixel_shuffle import PixelShuffle
from vitlab.heads.segformer_mlp import SegFormerMlp
from vitlab.heads.semantic_fpn import SemanticFPN
from vitlab.heads.simple_pyramid import SimplePyramid, pyramid_strides
from vitlab.heads.upernet import UPerNet
from vitlab.layers.norm import LayerNorm


class Head(Protocol):
    """Interface of every head: `Head(dims, strides, out_dim, **options, dtype=..., rngs=...)`, then maps -> a map or a vector."""

    reads_all: ClassVar[bool]  # False: the last map alone

    @staticmethod
    def unsupported_reason(strides: Strides) -> str | None:
        """Why the head cannot read maps of these strides, or None."""
        ...

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Any: ...


HEADS: Mapping[str, Any] = {  # classes, as `Head` describes them
    "linear": LinearHead,
    "fcn": FCN,
    "semantic_fpn": SemanticFPN,
    "upernet": UPerNet,
    "segformer_mlp": SegFormerMlp,
    "dpt": DPT,
    "pixel_shuffle": PixelShuffle,
    "density": Density,
    "center_point": CenterPoint,
    "attention_pool": AttentionPool,
}


def unsupported_reason(name: str, strides: Strides) -> str | None:
    """Why a head cannot stand on a trunk, or None.

    Args:
      name: A key of HEADS.
      strides: Pixels between neighbours of each of the trunk's maps.

    Raises:
      ValueError: There is no such head.
    """
    head = _head(name)
    if reason := order_reason(strides):
        return reason
    reason = head.unsupported_reason(strides)
    return None if reason is not None and _pyramid_helps(head, strides) else reason


class OnTrunk(nnx.Module):
    """A head of HEADS and what must stand between it and a trunk's maps.

    A LayerNorm stands on each map that the trunk has not normalised, as in Swin's code for segmentation (arXiv:2103.14030), and
    a `SimplePyramid` before a head that reads a pyramid where the trunk has no stages. Maps that nothing reads get no parameters.
    """

    def __init__(
        self,
        name: str,
        out_dim: int,
        *,
        dims: Sequence[int],
        strides: Strides,
        normalised: Sequence[bool] | None = None,
        options: Mapping[str, Any] | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
          name: A key of HEADS.
          out_dim: Channels of the result: classes, values of a pixel.
          dims: Width of each map of the trunk.
          strides: Pixels between neighbours of each map, from fine to coarse.
          normalised: Whether the trunk has normalised each map; None: all of them.
          options: Further arguments of the head by name, such as {"dim": 256}.
          dtype: Type of the computation; parameters and results are float32.
          rngs: Random numbers for the initial values.

        Raises:
          ValueError: The head cannot stand on these maps, or it has no such option.
        """
        done = (True,) * len(dims) if normalised is None else tuple(normalised)
        check_maps(dims, strides, unsupported_reason(name, strides))
        if len(done) != len(dims):
            raise ValueError(f"normalised={done} must have one entry a map, {len(dims)}")
        head, options = _head(name), dict(options or {})
        _check_options(name, options)
        pyramid = _pyramid_helps(head, strides)
        self.first = 0 if head.reads_all and not pyramid else len(dims) - 1  # the first map that is read
        dims, strides, done = dims[self.first :], strides[self.first :], done[self.first :]
        norms = [None if ready else LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs) for dim, ready in zip(dims, done, strict=True)]
        self.norms = nnx.List(norms)
        self.pyramid = SimplePyramid(dims, strides, dtype=dtype, rngs=rngs) if pyramid else None
        if self.pyramid is not None:
            dims, strides = self.pyramid.dims, self.pyramid.strides
        self.head = head(dims, strides, out_dim, **options, dtype=dtype, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Any:
        """The head's output from all the maps of a trunk."""
        read = features[self.first :]
        maps = tuple(x if norm is None else norm(x) for norm, x in zip(self.norms, read, strict=True))
        return self.head(maps if self.pyramid is None else self.pyramid(maps), train=train, rngs=rngs)


def _head(name: str) -> Any:
    if name not in HEADS:
        raise ValueError(f'unknown head "{name}": choose from {", ".join(HEADS)}')
    return HEADS[name]


def _pyramid_helps(head: Any, strides: Strides) -> bool:
    """Whether the head reads a pyramid, and the trunk's maps are of one stride, of which a pyramid can be made."""
    return (
        head.unsupported_reason(strides) is not None
        and plain_reason(strides) is None
        and head.unsupported_reason(pyramid_strides(strides)) is None
    )


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    given = {"self", "dims", "strides", "out_dim", "dtype", "rngs"}
    known = [option for option in inspect.signature(HEADS[name].__init__).parameters if option not in given]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f'head "{name}" has no option {", ".join(unknown)}: it takes {", ".join(known)}')

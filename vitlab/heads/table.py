"""All heads by name, and their use on any trunk whose maps suit them."""

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
from vitlab.heads.recurrent_criss_cross import RecurrentCrissCrossHead
from vitlab.heads.segformer_mlp import SegFormerMlp
from vitlab.heads.semantic_fpn import SemanticFPN
from vitlab.heads.simple_pyramid import SimplePyramid, pyramid_strides
from vitlab.heads.upernet import UPerNet
from vitlab.layers.norm import LayerNorm


class Head(Protocol):
    """Interface of every head: maps of a trunk -> a map or a vector.

    A head is created by `Head(dims, strides, out_dim, **options, dtype=..., rngs=...)`.
    """

    reads_all: ClassVar[bool]  # True: the head reads all maps; False: the last map alone

    @staticmethod
    def unsupported_reason(strides: Strides) -> str | None:
        """Returns why the head cannot read maps of these strides, or None."""
        ...

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Any: ...


HEADS: Mapping[str, Any] = {  # classes with the interface of `Head`
    "linear": LinearHead,
    "fcn": FCN,
    "semantic_fpn": SemanticFPN,
    "upernet": UPerNet,
    "recurrent_criss_cross": RecurrentCrissCrossHead,
    "segformer_mlp": SegFormerMlp,
    "dpt": DPT,
    "pixel_shuffle": PixelShuffle,
    "density": Density,
    "center_point": CenterPoint,
    "attention_pool": AttentionPool,
}


def unsupported_reason(name: str, strides: Strides) -> str | None:
    """Returns why a head cannot read a trunk's maps, or None.

    Args:
      name: A key of HEADS.
      strides: Pixels between neighbouring positions, for each of the trunk's maps.

    Raises:
      ValueError: `name` is not in HEADS.
    """
    head = _head(name)
    if reason := order_reason(strides):
        return reason
    reason = head.unsupported_reason(strides)
    return None if reason is not None and _pyramid_helps(head, strides) else reason


class OnTrunk(nnx.Module):
    """A head of HEADS with the layers that adapt a trunk's maps to it.

    A LayerNorm normalises each map that the trunk has not normalised, as in Swin's segmentation
    code (arXiv:2103.14030). If a head reads a pyramid and the trunk has no stages, a
    `SimplePyramid` makes one. Maps that the head does not read get no parameters.
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
          out_dim: Channels of the result, such as classes or values per pixel.
          dims: Width of each map of the trunk.
          strides: Pixels between neighbouring positions of each map, from fine to coarse.
          normalised: Whether the trunk has normalised each map; None: all of them.
          options: Further arguments of the head by name, such as {"dim": 256}.
          dtype: Type of the computation; parameters and results are float32.
          rngs: Random numbers for the initial values.

        Raises:
          ValueError: The head cannot read these maps, or lacks an option.
        """
        done = (True,) * len(dims) if normalised is None else tuple(normalised)
        check_maps(dims, strides, unsupported_reason(name, strides))
        if len(done) != len(dims):
            raise ValueError(f"normalised={done} must have one entry a map, {len(dims)}")
        head, options = _head(name), dict(options or {})
        _check_options(name, options)
        pyramid = _pyramid_helps(head, strides)
        self.first = 0 if head.reads_all and not pyramid else len(dims) - 1  # index of the first map that the head reads
        dims, strides, done = dims[self.first :], strides[self.first :], done[self.first :]
        norms = [None if ready else LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs) for dim, ready in zip(dims, done, strict=True)]
        self.norms = nnx.List(norms)
        self.pyramid = SimplePyramid(dims, strides, dtype=dtype, rngs=rngs) if pyramid else None
        if self.pyramid is not None:
            dims, strides = self.pyramid.dims, self.pyramid.strides
        self.head = head(dims, strides, out_dim, **options, dtype=dtype, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Any:
        """Returns the head's output from all maps of a trunk."""
        read = features[self.first :]
        maps = tuple(x if norm is None else norm(x) for norm, x in zip(self.norms, read, strict=True))
        return self.head(maps if self.pyramid is None else self.pyramid(maps), train=train, rngs=rngs)


def _head(name: str) -> Any:
    if name not in HEADS:
        raise ValueError(f'unknown head "{name}": choose from {", ".join(HEADS)}')
    return HEADS[name]


def _pyramid_helps(head: Any, strides: Strides) -> bool:
    """Whether a pyramid made of the trunk's maps, all of one stride, would suit the head."""
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

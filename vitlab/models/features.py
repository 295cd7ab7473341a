"""Outputs of a model before its head: a map per stage, and facts about each map."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """Facts about one map of `VisionModel.features`."""

    stride: int  # pixels of the image between neighbouring positions
    dim: int  # width of the map
    normalised: bool  # whether the map's last operation was a norm, so that a head needs none of its own


@jax.tree_util.register_pytree_node_class
class Features(tuple[Array, ...]):
    """The maps of a model, [b, h, w, dim] each, and its class tokens.

    It is a tuple of the maps. `class_tokens` holds the class tokens after the last norm, [b, dim]
    each; it is () if the model has none.
    """

    class_tokens: tuple[Array, ...]

    def __new__(cls, maps: Iterable[Any], class_tokens: tuple[Any, ...] = ()) -> "Features":  # Any: jax also builds it of shapes
        features = super().__new__(cls, maps)
        features.class_tokens = class_tokens
        return features

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        return (tuple(self), self.class_tokens), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any]) -> "Features":
        return cls(*children)


def run_stages(stages: Sequence[Callable[..., Array]], x: Array, *, train: bool, rngs: nnx.Rngs | None) -> Features:
    """Runs x = stage(x, train=train, rngs=rngs) for each stage and returns each stage's map."""
    maps = []
    for stage in stages:
        x = stage(x, train=train, rngs=rngs)
        maps.append(x)
    return Features(maps)


def quarters(depth: int) -> tuple[int, ...]:
    """Returns the numbers of blocks after which a plain trunk gives its maps.

    They are a quarter, half, three quarters and all of the blocks, each number once.
    """
    return tuple(sorted({max(1, depth * k // 4) for k in (1, 2, 3, 4)}))

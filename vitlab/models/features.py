"""Outputs of a model before its head: one map a stage, and facts about each."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """One map of `VisionModel.features`."""

    stride: int  # pixels between its positions
    dim: int  # width
    normalised: bool  # whether a norm is the last that was done to it, so that a head needs none of its own


@jax.tree_util.register_pytree_node_class
class Features(tuple[Array, ...]):
    """The maps of a model, [b, h, w, dim] each, and beside them the vectors that belong to no position.

    A tuple of the maps; `class_tokens` holds the class tokens after the last norm, [b, dim] each, () where the model has none.
    """

    class_tokens: tuple[Array, ...]

    def __new__(cls, maps: Iterable[Any], class_tokens: tuple[Any, ...] = ()) -> "Features":  # jax puts shapes in place of arrays
        features = super().__new__(cls, maps)
        features.class_tokens = class_tokens
        return features

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        return (tuple(self), self.class_tokens), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any]) -> "Features":
        return cls(*children)


def run_stages(stages: Sequence[Callable[..., Array]], x: Array, *, train: bool, rngs: nnx.Rngs | None) -> Features:
    """Runs x = stage(x, train=train, rngs=rngs) for each stage and returns the map at the end of each."""
    maps = []
    for stage in stages:
        x = stage(x, train=train, rngs=rngs)
        maps.append(x)
    return Features(maps)

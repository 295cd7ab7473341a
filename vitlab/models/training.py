"""Outputs of a model in a step of training: its logits, and what else its loss is made of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exit:
    """Logits beside the model's own, such as those of an early exit, which the labels train too."""

    logits: Any  # [b, classes]
    weight: float = dataclasses.field(metadata={"static": True})  # factor of the labels' loss
    distillation: float = dataclasses.field(default=0.0, metadata={"static": True})  # factor of KL(this exit's || the model's own logits')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Parts of a classifier's loss: arrays, or, as jax also builds it, their shapes."""

    heads: tuple[Any, ...]  # logits [b, classes] of each head, as `VisionModel.head_logits` gives them
    exits: tuple[Exit, ...] = ()
    terms: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # values [b] that are added to the loss, weighted as published

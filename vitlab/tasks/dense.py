"""Parts that tasks over maps share: a head of the table on a trunk, and means over the pixels that
are known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from vitlab.device.mix import cut_maps
from vitlab.heads import HEADS, OnTrunk
from vitlab.heads.attention_pool import AttentionPool
from vitlab.heads.center_point import CenterPoint
from vitlab.heads.density import Density
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.task import MIX, Batch, Setting, default_prepare

MAP_HEADS = tuple(name for name, head in HEADS.items() if head not in (AttentionPool, CenterPoint, Density))  # they give a plain map


def on_trunk(
    name: str, out_dim: int, setting: Setting, feature_info: Sequence[FeatureInfo], rngs: nnx.Rngs, options: Mapping[str, Any] | None = None
) -> OnTrunk:
    """A head of `vitlab.heads.HEADS` on a trunk's maps, or on the first of them.

    Args:
      name: Its key.
      out_dim: Channels of the result.
      setting: Gives the dtype.
      feature_info: Of the maps that the head may read.
      rngs: Random numbers for the initial values.
      options: Further arguments of the head.

    Raises:
      ValueError: There is no such head or option, or it cannot stand on these maps.
    """
    return OnTrunk(
        name,
        out_dim,
        dims=[info.dim for info in feature_info],
        strides=[info.stride for info in feature_info],
        normalised=[info.normalised for info in feature_info],
        options=options,
        dtype=setting.experiment.model.dtype,
        rngs=rngs,
    )


def check_head(name: str, choices: Sequence[str]) -> None:
    """Refuses a head that does not give what a task wants.

    Raises:
      ValueError: It is none of the choices.
    """
    if name not in choices:
        raise ValueError(f'task.head="{name}" must be one of {", ".join(choices)}')


CUTMIX = (
    "mix.cutmix_alpha",
    "mix.prob",
    "mix.mode",
)  # config keys read by tasks over maps; a mean of two classes or depths is no annotation


# Config keys read by tasks whose teacher gives numbers, which are neither hard nor divided by a
# temperature.
TAUGHT = ("loss.distillation.teacher", "loss.distillation.step", "loss.distillation.alpha")


def blended(labels: Array, teacher: Array, setting: Setting) -> Array:
    """(1 - alpha) * loss of the annotations + alpha * loss of the teacher, as classification has
    it.
    """
    alpha = setting.experiment.loss.distillation.alpha
    return (1 - alpha) * labels + alpha * teacher


def cut_and_erased(*names: str) -> Callable[[Batch, Array | None, Setting], Batch]:
    """The preparation of a task over maps: images erased, then cutmix of images and the maps of
    these names.
    """

    def prepare(batch: Batch, rng: Array | None, setting: Setting) -> Batch:
        batch = default_prepare(batch, rng, setting)
        if rng is None:
            return batch
        mixed = {name: batch[name] for name in ("image", *names)}
        return batch | cut_maps(mixed, jax.random.fold_in(rng, MIX), setting.experiment.mix)

    return prepare


def pixel_sum(values: Shaped[Array, "b *rest"]) -> Float[Array, " b"]:
    """The sum of each image's values, float32, in one order: halves are added until one number is
    left.

    XLA's own sums take another order for another batch, so that an evaluation would change in its
    last digits.
    """
    x = values.astype(jnp.float32).reshape(len(values), -1)
    while x.shape[1] > 1:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2)))
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x[:, 0]


def exact_sum(values: np.ndarray) -> float:
    """The sum of one number an image, rounded once, so that neither batches nor devices change
    it.
    """
    return math.fsum(np.asarray(values).tolist())


def exact_mean(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """The sum of one number an image over the sum of another; None where there is nothing."""
    total = exact_sum(counts)
    return exact_sum(sums) / total if total else None

"""The anytime curve: accuracy of each early exit of a network over the cost of reaching it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters import partial_eval
from jaxtyping import Array, Float

from pallas_kernels import target
from vitlab.analysis.counts import macs_in
from vitlab.config import ConfigError
from vitlab.functional import FunctionalModel, Trunk
from vitlab.runs.trained import Trained
from vitlab.tasks import Evaluation

Exits = tuple[Float[Array, "b classes"], ...]


def forward(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> Exits:
    """Logits of each exit, from the earliest to the last."""
    del head
    return trunk.model.exits(trunk.normalised(batch["image"]), train=train, rngs=rngs)


def check_exits(trained: Trained) -> None:
    """Refuses a model without exits.

    Raises:
      ConfigError: Its family has none.
    """
    module = nnx.merge(trained.model.graphdef, trained.model.shapes["params"], trained.model.shapes["model_state"], trained.model.constants)
    if not hasattr(module, "exits"):
        raise ConfigError(f"--protocol=exits measures early exits; {trained.origin['model']} has none, as dynperceiver_* have")


def exits_evaluation(macs: tuple[int, ...]) -> Evaluation:
    """Counts the images on whose label each exit is right, exactly.

    Args:
      macs: Multiply-accumulates up to each exit.

    Returns:
      An evaluation that gives {"exits": [{"gmacs", "top1" (share)}, ...]}, in the order of exits.
    """

    def measure(outputs: Exits, batch: Mapping[str, Array]) -> dict[str, Array]:
        right = [(logits.argmax(-1) == batch["label"]) & jnp.isfinite(logits).all(-1) for logits in outputs]
        return {f"exit{i}": (batch["mask"] & x).sum() for i, x in enumerate(right)}

    def finish(totals: Mapping[str, Any], images: int) -> dict[str, Any]:
        top1 = [float(totals[f"exit{i}"]) / max(images, 1) for i in range(len(macs))]
        return {"exits": [{"gmacs": round(cost / 1e9, 4), "top1": share} for cost, share in zip(macs, top1, strict=True)]}

    return Evaluation(measure=measure, finish=finish)


def macs_of_exits(model: FunctionalModel) -> tuple[int, ...]:
    """Multiply-accumulates of one image up to each exit, without those that only later exits need.

    Args:
      model: Whose `forward` is that of this module.
    """
    with target.assume("any"):  # as `vitlab.analysis.counts.macs_of` does
        traced = jax.make_jaxpr(lambda weights, x: model.run(weights, x)[0])(model.shapes, model.abstract_inputs()).jaxpr
    count = len(traced.outvars)
    parts = (partial_eval.dce_jaxpr(traced, [i == index for i in range(count)])[0] for index in range(count))
    return tuple(macs_in(part) for part in parts)

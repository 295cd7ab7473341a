"""One step of training as a pure function of (state, batch)."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vitlab.config import LossConfig
from vitlab.train.functional import FunctionalModel
from vitlab.train.losses import cross_entropy
from vitlab.train.mesh import batch_sharding, replicated
from vitlab.train.schedule import Schedule
from vitlab.train.state import State

Batch = dict[str, Array]  # image: uint8 [b, h, w, c], label: int32 [b]
Metrics = dict[str, Array]
TrainStep = Callable[[State, Batch], tuple[State, Metrics]]


def make_train_step(
    model: FunctionalModel,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    loss: LossConfig,
    seed: int,
    log_every: int,
) -> TrainStep:
    """Builds the step.

    Randomness is a function of (seed, step). The metrics `loss` and `accuracy` are means since the last multiple of
    `log_every`: their sums live in the state, so that a resumed run reports what an uninterrupted one does. `finite` is [the
    loss, then every gradient in the order of the leaves]; `grad_norm` is before clipping.
    """

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state["step"])

        def mean_loss(params: Any) -> tuple[Array, tuple[Array, Any]]:
            logits, model_state = model.apply({"params": params, "model_state": state["model_state"]}, batch["image"], rng)
            return cross_entropy(logits, batch["label"], label_smoothing=loss.label_smoothing).mean(), (logits, model_state)

        (value, (logits, model_state)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        interval = _add(state, value, (logits.argmax(-1) == batch["label"]).sum(), len(batch["label"]), log_every)
        squares = jnp.stack([jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(grads)])
        metrics = {
            "loss": interval["loss"] / interval["images"],
            "accuracy": interval["correct"] / interval["images"],
            "lr": schedule(state["step"]),
            "grad_norm": jnp.sqrt(squares.sum()),
            "finite": jnp.isfinite(jnp.concatenate([value[None], squares])),
        }
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "model_state": model_state,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "interval": interval,
        }
        return new, metrics

    return train_step


def trace_step(train_step: TrainStep, state: Any, batch: Any, mesh: Mesh) -> jax.stages.Traced:
    """Traces the step for states and batches of these shapes; the old state's memory will be given to the new one.

    Raises:
      ValueError, RuntimeError, UnsupportedError: The model cannot run such a batch, or not on this device.
    """
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), batch)
    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh)).trace(state, batch)


def compile_step(traced: jax.stages.Traced) -> tuple[TrainStep, float]:
    """Compiles the step ahead of the first batch; the result accepts only its shapes, so nothing is compiled again unnoticed.

    Returns:
      The compiled step and the seconds it took.
    """
    begin = time.perf_counter()
    return traced.lower().compile(), time.perf_counter() - begin


def _add(state: State, loss: Array, correct: Array, images: int, log_every: int) -> Any:
    begins = state["step"] % log_every == 0
    new = {"loss": loss * images, "correct": correct, "images": images}
    return jax.tree.map(lambda old, x: jnp.where(begins, 0, old) + jnp.asarray(x, old.dtype), state["interval"], new)

"""The training state: all that changes during training, as one plain dict; saved in checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vitlab.config import Experiment
from vitlab.functional import FunctionalModel, Weights
from vitlab.tasks import Task, task_of
from vitlab.train.optimizer import averaged_params
from vitlab.tree import joined

# Keys: params, model_state, opt_state, step (int32, steps done), interval (sums since the last
# log), skips (see step.py), and, if weights are averaged, average (params and model_state).
State = dict[str, Any]


def make_state(model: FunctionalModel, weights: Weights, optimizer: optax.GradientTransformation, experiment: Experiment) -> State:
    """The state before the first step; the optimizer's state covers the trained parameters only."""
    task, options = task_of(experiment)
    interval = {name: jnp.zeros((), jnp.float32) for name in ("loss", *logged_terms(task, options))}
    interval |= {name: jnp.zeros((), jnp.int32) for name in (*task.counts, "images")}
    skips = {"total": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)}
    if experiment.spike_factor is not None:
        skips |= {"usual_norm": jnp.zeros((), jnp.float32), "kept": jnp.zeros((), jnp.int32)}
    opt_state = optimizer.init(model.split(weights["params"])[0])
    state = {**weights, "opt_state": opt_state, "step": jnp.zeros((), jnp.int32), "interval": interval, "skips": skips}
    if experiment.averages:
        state["average"] = jax.tree.map(jnp.copy, weights)
    return state


def logged_terms(task: Task, options: Any) -> tuple[str, ...]:
    """Names of the loss's terms that are logged beside it: all, if there are several."""
    terms = task.terms(options)
    return terms if len(terms) > 1 else ()


def average(model: FunctionalModel, experiment: Experiment, old: State, new: State) -> Weights:
    """The averaged weights after a step: those of schedule-free training, or a moving average.

    `old` is the state before the step. The decay of the exponential moving average grows with the
    step t as (1 + t) / (10 + t), up to `ema_decay`, so that the average forgets the beginning.
    """
    if experiment.ema_decay is None:
        trained, frozen = model.split(new["params"])
        params = averaged_params(experiment.optimizer, new["opt_state"], trained)
        return {"params": joined(params, frozen), "model_state": new["model_state"]}
    t = (old["step"] + 1).astype(jnp.float32)
    keep = jnp.minimum(experiment.ema_decay, (1 + t) / (10 + t))
    latest = {name: new[name] for name in ("params", "model_state")}

    def mixed(a: Array, x: Array, changes: bool) -> Array:
        return (keep * a + (1 - keep) * x).astype(a.dtype) if changes else x  # rounding: a mean of equal numbers can differ from these

    return jax.tree.map(mixed, old["average"], latest, model.changes())

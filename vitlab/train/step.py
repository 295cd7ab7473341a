"""One step of training as a pure function of (state, batch) and a teacher's weights, if any."""

import functools
import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vitlab.config import Experiment
from vitlab.functional import FunctionalModel
from vitlab.parallel.mesh import batch_sharding, replicated, sharded_shapes
from vitlab.tasks import Task, setting_of, task_of
from vitlab.train.schedule import Schedule
from vitlab.train.state import State, average, logged_terms
from vitlab.tree import joined

Batch = dict[str, Array]  # image: uint8 [b, h, w, c], and the fields of the task
Metrics = dict[str, Array]
TrainStep = Callable[..., tuple[State, Metrics]]  # (state, batch[, teacher's weights]) -> (state, metrics)
STEADY_STEPS = 100  # number of gradients that define the usual norm


def make_train_step(
    model: FunctionalModel,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    experiment: Experiment,
    num_classes: int,
    log_every: int,
    teacher: FunctionalModel | None = None,
    class_weights: Float[np.ndarray, " classes"] | None = None,
) -> TrainStep:
    """Builds the step of the experiment's task.

    Randomness is a function of (seed, step). The metrics are `loss`, its terms if there are
    several, and the task's counts (for classification `accuracy`, of the label with the larger
    share if images are mixed). They are means since the last multiple of `log_every`: their sums
    live in the state, so that a resumed run reports the values of an uninterrupted one. `finite`
    holds flags of the loss and of each trained parameter's gradient in the order of the leaves;
    `grad_norm` is the norm before clipping. Frozen parameters (see `vitlab.functional.freeze`) have
    no gradient.

    Under `nonfinite="skip"` a step whose flags are not all True leaves weights and optimizer
    unchanged and is in no mean; the metrics `skipped` and `skipped_in_a_row` count such steps.
    Under "stop" the report ends the run. A `spike_factor` also skips a step whose `grad_norm`
    exceeds the running mean of earlier steps by this factor, after the first `STEADY_STEPS` steps;
    a new step weighs 1 % in the mean.

    A teacher sees the student's pixels, erased and mixed, normalises them as it was trained, and
    runs as in evaluation. Its weights are the step's third argument, neither state nor constants of
    the program. The `class_weights` are constants, see `label_loss`.
    """
    skip, spike_factor = experiment.nonfinite == "skip", experiment.spike_factor
    task, options = task_of(experiment)
    setting = setting_of(experiment, options, model.preprocessing, num_classes=num_classes, class_weights=class_weights)
    terms = logged_terms(task, options)

    def part(
        teacher_weights: Any, frozen: Any, scales: Any, trained: Any, model_state: Any, batch: Batch, rng: Array
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        weights = {"params": joined(trained, frozen), "model_state": model_state}
        outputs, model_state = model.run(weights, batch, rng)
        if teacher is not None:
            batch = {**batch, "teacher": _taught(task, teacher, teacher_weights, batch)}
        values = {name: x.mean() if scales is None else x.sum() * scales[name] for name, x in task.loss(outputs, batch, setting).items()}
        sums = {name: values[name] / experiment.accumulation for name in terms}
        sums |= {name: count.of(outputs, batch, setting) for name, count in task.counts.items()}
        return functools.reduce(operator.add, values.values()), (sums, model_state)

    def train_step(state: State, batch: Batch, teacher_weights: Any = None) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(experiment.seed), state["step"])
        images, batch = len(batch["image"]), task.prepare(batch, rng, setting)
        trained, frozen = model.split(state["params"])
        scales = None if task.weights is None else _scales(task.weights(batch, setting), experiment.accumulation)
        own_part, begin = functools.partial(part, teacher_weights, frozen, scales), (trained, state["model_state"])
        value, sums, model_state, grads = _accumulate(own_part, *begin, batch, rng, parts=experiment.accumulation)
        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        squares = jnp.stack([jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(grads)])
        finite = jnp.isfinite(jnp.concatenate([value[None], squares]))
        grad_norm, skips = jnp.sqrt(squares.sum()), state["skips"]
        keep = finite.all() | (not skip)
        if spike_factor is not None:
            keep &= (skips["kept"] < STEADY_STEPS) | (grad_norm <= spike_factor * skips["usual_norm"])
        means = {"loss": value, **{name: sums.pop(name) for name in terms}}
        interval = _add(state, means, sums, images, log_every, keep)
        logged = {name: name for name in ("loss", *terms)} | {name: count.metric for name, count in task.counts.items()}
        metrics = {
            **{metric: interval[name] / interval["images"] for name, metric in logged.items()},
            "lr": schedule(state["step"]),
            "grad_norm": grad_norm,
            "finite": finite,
        }
        params = joined(optax.apply_updates(trained, updates), frozen)
        new = {"params": params, "model_state": model_state, "opt_state": opt_state}
        if "average" in state:
            new["average"] = average(model, experiment, state, new)
        if spike_factor is not None:
            share = jnp.maximum(0.01, 1 / (1 + skips["kept"]))  # the plain mean of the first hundred
            usual = jnp.where(keep, (1 - share) * skips["usual_norm"] + share * grad_norm, skips["usual_norm"])
            skips = {**skips, "usual_norm": usual, "kept": skips["kept"] + keep}
        if skip:
            new = jax.tree.map(lambda x, old: jnp.where(keep, x, old), new, {k: state[k] for k in new})
            skips = {**skips, "total": skips["total"] + ~keep, "in_a_row": jnp.where(keep, 0, skips["in_a_row"] + 1)}
            metrics |= {"skipped": skips["total"], "skipped_in_a_row": skips["in_a_row"]}
        return {**new, "step": state["step"] + 1, "interval": interval, "skips": skips}, metrics

    return train_step


def _taught(task: Task, teacher: FunctionalModel, weights: Any, batch: Batch) -> Any:
    """The teacher's outputs: the mean logits of the model's own heads, or those of the task's
    head.
    """
    return teacher.apply(weights, batch["image"])[0] if task.head is None else teacher.run(weights, batch)[0]


def _scales(weights: dict[str, Array], parts: int) -> dict[str, Array]:
    """Factors of each term's sum over a part of the batch.

    With them the mean over the parts is that of the whole batch.
    """
    return {name: parts / jnp.maximum(x.sum(), 1) for name, x in weights.items()}


def _accumulate(part: Callable[..., Any], trained: Any, model_state: Any, batch: Batch, rng: Array, *, parts: int) -> tuple[Any, ...]:
    """Mean loss and gradient, and the task's sums, over parts of the batch.

    Batch statistics pass from part to part. A part takes every `parts`-th image, so that it lies on
    all devices as the batch does.
    """
    grad_fn = jax.value_and_grad(part, has_aux=True)
    if parts == 1:
        (value, (sums, model_state)), grads = grad_fn(trained, model_state, batch, rng)
        return value, sums, model_state, grads

    def split(x: Array) -> Array:
        return x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(carry: tuple[Any, ...], x: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
        value, sums, model_state, grads = carry
        index, batch = x
        (v, (s, model_state)), g = grad_fn(trained, model_state, batch, jax.random.fold_in(rng, index))
        sums = jax.tree.map(jnp.add, sums, s)
        return (value + v / parts, sums, model_state, jax.tree.map(lambda a, b: a + b / parts, grads, g)), None

    zeros = jax.tree.map(jnp.zeros_like, trained)
    shapes = jax.eval_shape(lambda batch: part(trained, model_state, jax.tree.map(lambda x: split(x)[0], batch), rng)[1][0], batch)
    begin = (jnp.zeros(()), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), model_state, zeros)
    return jax.lax.scan(add, begin, (jnp.arange(parts), jax.tree.map(split, batch)))[0]


def trace_step(train_step: TrainStep, state: Any, batch: Any, mesh: Mesh, *, teacher: FunctionalModel | None = None) -> jax.stages.Traced:
    """Traces the step for states and batches of these shapes.

    The new state takes the place and the memory of the old one. With a teacher the step is also
    traced for its weights, which lie on the mesh as parameters do and stay there.

    Raises:
      ValueError, RuntimeError, UnsupportedError: The model cannot run such a batch, or not on this
        device.
    """
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), batch)
    shardings = (jax.tree.map(lambda x: x.sharding, state), replicated(mesh))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # kernels are chosen for the mesh's devices
        fixed = () if teacher is None else (sharded_shapes(teacher.shapes, mesh, teacher.tensor_split),)
        return jax.jit(train_step, donate_argnums=0, out_shardings=shardings).trace(state, batch, *fixed)


def compile_step(traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, float]:
    """Compiles the step ahead of the first batch; it then accepts only these shapes.

    Nothing is therefore compiled again unnoticed.

    Returns:
      The compiled step, to be called as a TrainStep, and the seconds of the compilation.
    """
    begin = time.perf_counter()
    return traced.lower().compile(), time.perf_counter() - begin


def _add(state: State, means: dict[str, Array], counts: dict[str, Array], images: int, log_every: int, keep: Array) -> Any:
    begins = state["step"] % log_every == 0
    new = {**{name: x * images for name, x in means.items()}, **counts, "images": images}
    return jax.tree.map(lambda old, x: jnp.where(begins, 0, old) + jnp.where(keep, jnp.asarray(x, old.dtype), 0), state["interval"], new)

"""A linear classifier on frozen features, as MAE or DINOv2 trains it.

MAE (He et al., arXiv:2111.06377, appendix A.1, and its code): a batch norm without scale and shift
and a linear layer, trained by LARS without weight decay. DINOv2 (Oquab et al., arXiv:2304.07193,
appendix B.3, and its code): a linear layer, momentum without weight decay, a sweep of 13 rates.

It departs from both in two ways: features are computed once, from the centre crop, without random
crops and flips; and several learning rates are trained at once, of which held-out training images
choose one. DINOv2's sweep also takes the class tokens of four blocks; the class token beside the
mean of the patches is the model's `pool="cls_mean"`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vitlab.evaluate.features import Features

RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # learning rates; MAE's is 6.4, in 90 epochs of ImageNet; few images have few steps, and need more
_EPS = 1e-6  # epsilon of the batch norm
_NORM_MOMENTUM = 0.1  # weight of a batch in the running statistics
_HELD_OUT = 10  # one training image in ten is held out to choose the rate
_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the classifier's training."""

    epochs: int = 90
    batch_size: int = 1024  # number of images, at most all; MAE's is 16384
    warmup: float = 0.1  # share of the steps in which the rate rises
    rates: tuple[float, ...] = RATES
    rate_batch: int | None = None  # images of a batch that the rates are for, and are scaled from; None: they are taken as they are
    batch_norm: bool = True  # whether the features are normalised by the statistics of the batch
    optimizer: Literal["lars", "sgd"] = "lars"  # both with momentum 0.9


MAE = Training()
# DINOv2's ten epochs of ImageNet are 12,500 steps, of which few images have too few.
DINOV2 = Training(
    warmup=0.0,
    rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    rate_batch=256,
    batch_norm=False,
    optimizer="sgd",
)


def linear_probe(train: Features, test: Features, *, num_classes: int, training: Training = MAE) -> dict[str, Any]:
    """Trains the classifier at several rates; evaluates the one that is best on held-out images.

    The chosen rate is trained once more, on all training images.

    Returns:
      {"top1", "top5" (only with more than five classes), "loss" (mean, nats), "rate", "images",
      "held_out_top1": {"0.1": ...}}.
    """
    order = np.random.default_rng(_SEED).permutation(len(train.labels))
    held_out, rest = order[::_HELD_OUT], np.sort(np.delete(order, np.s_[::_HELD_OUT]))
    heads = _fit(train, rest if len(rest) else order, training, num_classes)
    scores = [_evaluate(_of_rate(heads, i), train, held_out)["top1"] for i in range(len(training.rates))]
    best = int(np.argmax(scores))
    chosen = dataclasses.replace(training, rates=(training.rates[best],))
    head = _of_rate(_fit(train, np.arange(len(train.labels)), chosen, num_classes), 0)
    result = _evaluate(head, test, np.arange(len(test.labels)))
    if num_classes <= 5:
        del result["top5"]
    by_rate = {f"{rate:g}": score for rate, score in zip(training.rates, scores, strict=True)}
    return {**result, "rate": training.rates[best], "images": len(test.labels), "held_out_top1": by_rate}


def create_head(dim: int, num_classes: int, seed: int = _SEED) -> dict[str, Array]:
    """Initial weights [classes, d] of deviation 0.01, zero biases, and statistics of the norm."""
    weight = 0.01 * jax.random.normal(jax.random.key(seed), (num_classes, dim))
    return {"weight": weight, "bias": jnp.zeros(num_classes), "mean": jnp.zeros(dim), "var": jnp.ones(dim)}


def lars() -> optax.GradientTransformation:
    """LARS (You et al., arXiv:1708.03888) as in MAE's code: trust 0.001 for matrices, momentum 0.9.

    Its result is to be multiplied by minus the learning rate.
    """
    matrices = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    return optax.chain(matrices, optax.trace(decay=0.9))


def optimizer_of(training: Training) -> optax.GradientTransformation:
    """The transformation that gives a step's direction, to be multiplied by minus the rate."""
    return lars() if training.optimizer == "lars" else optax.trace(decay=0.9)


def train_step(
    head: dict[str, Array],
    moments: Any,
    x: Float[Array, "b d"],
    labels: Int[Array, " b"],
    rate: float | Float[Array, ""],
    *,
    training: Training = MAE,
) -> tuple[dict[str, Array], Any, Float[Array, ""]]:
    """One step on a batch: the new head, moments and the loss before the step."""
    params = {name: head[name] for name in ("weight", "bias")}
    mean, var = x.mean(0), x.var(0)
    normalised = (x - mean[None]) / jnp.sqrt(var + _EPS)[None] if training.batch_norm else x

    def loss_of(params: dict[str, Array]) -> Float[Array, ""]:
        logits = _product(normalised, params)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradient = jax.value_and_grad(loss_of)(params)
    direction, moments = optimizer_of(training).update(gradient, moments, params)
    new = jax.tree.map(lambda p, d: p - rate * d, params, direction)
    if not training.batch_norm:
        return new | {name: head[name] for name in ("mean", "var")}, moments, loss
    unbiased = var * (len(x) / max(len(x) - 1, 1))
    new["mean"] = (1 - _NORM_MOMENTUM) * head["mean"] + _NORM_MOMENTUM * mean
    new["var"] = (1 - _NORM_MOMENTUM) * head["var"] + _NORM_MOMENTUM * unbiased
    return new, moments, loss


@jax.jit
def logits_of(head: dict[str, Array], x: Float[Array, "b d"]) -> Float[Array, "b classes"]:
    """Logits of the classifier, normalised by its running statistics."""
    return _product((x - head["mean"][None]) / jnp.sqrt(head["var"] + _EPS)[None], head)


def _product(x: Float[Array, "b d"], params: dict[str, Array]) -> Float[Array, "b classes"]:
    return jnp.matmul(x, params["weight"].T, precision=jax.lax.Precision.HIGHEST) + params["bias"][None]


def _fit(features: Features, rows: np.ndarray, training: Training, num_classes: int) -> dict[str, Array]:
    """The heads of all rates, stacked on a new first axis; every epoch has its fixed order."""
    size = min(training.batch_size, len(rows))
    steps_per_epoch = len(rows) // size
    schedule = _schedule(training, steps_per_epoch * training.epochs)
    first = create_head(features.values.shape[-1], num_classes)
    if not training.batch_norm:
        first["var"] -= _EPS  # so that `logits_of` divides by one
    count = len(training.rates)
    heads = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), first)
    moments = jax.vmap(lambda head: optimizer_of(training).init({n: head[n] for n in ("weight", "bias")}))(heads)
    rates = jnp.asarray(training.rates) * (1.0 if training.rate_batch is None else size / training.rate_batch)
    one_step = functools.partial(train_step, training=training)
    step = jax.jit(jax.vmap(one_step, in_axes=(0, 0, None, None, 0)), donate_argnums=(0, 1))
    for epoch in range(training.epochs):
        order = np.random.default_rng((_SEED, epoch)).permutation(rows)
        for i in range(steps_per_epoch):
            chosen = np.sort(order[i * size : (i + 1) * size])  # sorted, so that the file is read in its order
            x, labels = jnp.asarray(features.values[chosen]), jnp.asarray(features.labels[chosen], jnp.int32)
            heads, moments, _ = step(heads, moments, x, labels, rates * schedule[epoch * steps_per_epoch + i])
    return heads


def _schedule(training: Training, steps: int) -> np.ndarray:
    """Factor of the rate at each step: a linear rise, then half a cosine down to 0."""
    warm = round(training.warmup * steps)
    at = np.arange(steps)
    rest = (at - warm) / max(steps - warm, 1)
    return np.where(at < warm, (at + 1) / max(warm, 1), 0.5 * (1 + np.cos(np.pi * rest))).astype(np.float32)


def _evaluate(head: dict[str, Array], features: Features, rows: np.ndarray, batch_size: int = 4096) -> dict[str, float]:
    hits, loss = np.zeros(2), 0.0
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        logits, labels = np.asarray(logits_of(head, jnp.asarray(features.values[chosen]))), features.labels[chosen]
        rank = (np.argsort(-logits, axis=-1, kind="stable") == labels[:, None]).argmax(-1)
        hits += [(rank < 1).sum(), (rank < 5).sum()]
        loss += float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum())
    count = max(len(rows), 1)
    return {"top1": float(hits[0] / count), "top5": float(hits[1] / count), "loss": loss / count}


def _of_rate(heads: dict[str, Array], index: int) -> dict[str, Array]:
    return jax.tree.map(lambda x: x[index], heads)

"""Losses of logits against soft targets, one value per image."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vitlab.config import ConfigError, DistillationConfig, LossConfig
from vitlab.config.references import load_reference

__all__ = [
    "LOSSES",
    "class_weights",
    "cross_entropy",
    "distilled_loss",
    "hard_distillation",
    "label_loss",
    "loss_of",
    "per_image",
    "self_distillation",
    "sigmoid_cross_entropy",
    "soft_distillation",
    "soft_targets",
    "uncertainty_weighted",
]

PerImage = Callable[[Array, Array], Array]  # (logits [b, classes], targets or labels) -> one value an image, [b]


def soft_targets(labels: Int[Array, " b"], num_classes: int, *, label_smoothing: float = 0.0) -> Float[Array, "b classes"]:
    """One-hot targets; smoothing spreads its share evenly over all classes, the label's too."""
    return jax.nn.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes


def sigmoid_cross_entropy(logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Float[Array, " b"]:
    """Binary cross-entropy, the mean over classes, in nats, as in DeiT III (arXiv:2204.07118)."""
    # optax.sigmoid_binary_cross_entropy gives equal numbers, but negates each element, not the mean
    # alone.
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)).mean(-1)


LOSSES = {"softmax": optax.softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def loss_of(kind: str) -> PerImage:
    """The loss with a name: one of `LOSSES`, or the user's own, see `vitlab.config.references`.

    Raises:
      ConfigError: The user's function cannot be found, or, when called, does not return one value
        an image.
    """
    return LOSSES[kind] if kind in LOSSES else per_image("loss.kind", kind)


def per_image(key: str, reference: str) -> PerImage:
    """The user's own function that a config names; its result is checked to be one value an image.

    Args:
      key: Key of the config, for the message.
      reference: Name of the function, see `vitlab.config.references`.

    Raises:
      ConfigError: There is no such function, or, when called, it returns another shape than [b].
    """
    function = load_reference(reference)

    def checked(logits: Array, targets: Array) -> Array:
        values = jnp.asarray(function(logits, targets))
        if values.shape != logits.shape[:1]:
            raise ConfigError(
                f"{key}={reference} returns an array of shape {values.shape} in place of one value an image, {logits.shape[:1]}"
            )
        return values.astype(jnp.float32)

    return checked


def class_weights(kind: Literal["inverse", "inverse_sqrt"], counts: Int[np.ndarray, " classes"]) -> Float[np.ndarray, " classes"]:
    """Class weights of the loss: rare classes count more, and the mean over all images is 1.

    Args:
      kind: "inverse": proportional to 1 / counts, so that all classes have the same sum;
        "inverse_sqrt": to 1 / sqrt(counts).
      counts: Training images of each class, at least one image in all. A class without images has
        the weight 1.
    """
    raw = np.maximum(counts, 1) ** (-1.0 if kind == "inverse" else -0.5)
    weights = raw * counts.sum() / (raw * counts).sum()
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def label_loss(
    logits: Float[Array, "b classes"],
    targets: Float[Array, "b classes"],
    kind: str,
    weights: Float[np.ndarray, " classes"] | None = None,
) -> Float[Array, " b"]:
    """The loss of soft targets (nats), weighted by class.

    Under "softmax" each class's part of the target has its own weight: an image mixed of two
    classes gets a share of both weights (and smoothing a share of all), as in torch's
    `CrossEntropyLoss(weight)`. Under "sigmoid", where every image is an example for every class,
    and under the user's own loss, an image has the mean weight of its target.
    """
    loss = loss_of(kind)
    if weights is None:
        return loss(logits, targets)
    weighted = targets * weights[None]
    return loss(logits, weighted) if kind == "softmax" else loss(logits, targets) * weighted.sum(-1)


def cross_entropy(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Softmax cross-entropy with labels (nats), for evaluation; a logit of -inf gives infinity."""
    # optax.softmax_cross_entropy_with_integer_labels rounds otherwise, so that recorded evaluations
    # would differ in the last digits.
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[:, None], axis=-1)[:, 0]


def soft_distillation(logits: Float[Array, "b classes"], teacher: Float[Array, "b classes"], temperature: float) -> Float[Array, " b"]:
    """T**2 * KL(softmax(teacher / T) || softmax(logits / T)) / classes with temperature T, in nats.

    Hinton et al., arXiv:1503.02531 section 2; DeiT, arXiv:2012.12877 eq. 2. Neither paper divides
    by the number of classes; DeiT's code does (its losses.py averages over all elements, as older
    versions of torch did). This function follows the code, for which DeiT's alpha was chosen. To
    get the papers' weighting, use alpha' = classes * alpha / (1 - alpha + classes * alpha) and a
    learning rate to match. Eq. 2 writes the student first in KL; the code, and Hinton et al., have
    the teacher's distribution first.
    """
    log_p, log_q = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (jax.lax.stop_gradient(teacher), logits))
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).mean(-1)


def hard_distillation(logits: Float[Array, "b classes"], teacher: Float[Array, "b classes"]) -> Float[Array, " b"]:
    """Cross-entropy (nats) with the teacher's likeliest class (DeiT, arXiv:2012.12877 eq. 3).

    The target is not smoothed.
    """
    return cross_entropy(logits, teacher.argmax(-1))


def self_distillation(logits: Float[Array, "b classes"], last: Float[Array, "b classes"]) -> Float[Array, " b"]:
    """KL(softmax(last) || softmax(logits)) in nats, summed over the classes.

    No gradient flows to the last exit's logits.
    """
    log_p, log_q = (jax.nn.log_softmax(x, axis=-1) for x in (jax.lax.stop_gradient(last), logits))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def distilled_loss(
    heads: Sequence[Float[Array, "b classes"]],
    targets: Float[Array, "b classes"],
    teacher: Float[Array, "b classes"],
    config: LossConfig,
    weights: Float[np.ndarray, " classes"] | None = None,
) -> Float[Array, " b"]:
    """(1 - alpha) * loss of the labels + alpha * distillation.

    One head gives both terms its logits. Of DeiT's two heads (arXiv:2012.12877, section 4) the
    first, of the class token, follows the labels, and the last, of the distillation token, the
    teacher. Eq. 3 weighs both halves of the hard loss equally; DeiT's code weighs them by alpha,
    and so does this function. As in that code, the labels' loss is that of `config.kind`, and the
    teacher's is always that of a softmax.

    Args:
      heads: Logits of the student's heads.
      targets: Labels after smoothing and mixing.
      teacher: The teacher's logits of the same images; no gradient flows to them.
      config: Kinds, alpha and temperature.
      weights: Class weights of the labels' loss, see `label_loss`.

    Returns:
      One value per image.
    """
    options = config.distillation
    return (1 - options.alpha) * label_loss(heads[0], targets, config.kind, weights) + options.alpha * _distillation(
        heads[-1], teacher, options
    )


def _distillation(logits: Array, teacher: Array, options: DistillationConfig) -> Array:
    return soft_distillation(logits, teacher, options.temperature) if options.kind == "soft" else hard_distillation(logits, teacher)


def uncertainty_weighted(losses: Float[Array, " k"], log_variances: Float[Array, " k"]) -> Float[Array, ""]:
    """Half the sum of exp(-w) * loss + w, with w the log variances of the losses.

    The losses are so weighed by learned uncertainties (Kendall et al., arXiv:1705.07115, eq. 7).
    """
    return 0.5 * (jnp.exp(-log_variances) * losses + log_variances).sum()

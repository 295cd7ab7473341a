"""Losses of logits against soft targets, one value per image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def soft_targets(labels: Int[Array, " b"], num_classes: int, *, label_smoothing: float = 0.0) -> Float[Array, "b classes"]:
    """One-hot; smoothing spreads that share of the target evenly over all classes, the label's included."""
    return jax.nn.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes


def softmax_cross_entropy(logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Float[Array, " b"]:
    """In nats."""
    return -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def sigmoid_cross_entropy(logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Float[Array, " b"]:
    """Binary cross-entropy of each class (nats), the mean over classes, as DeiT III has it (arXiv:2204.07118)."""
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)).mean(-1)


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def cross_entropy(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Softmax cross-entropy with labels (nats), for evaluation; infinite where a label's logit is minus infinity."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[:, None], axis=-1)[:, 0]

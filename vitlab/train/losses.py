"""Losses of logits, one value per image."""

import jax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "b classes"], labels: Int[Array, " b"], *, label_smoothing: float = 0.0) -> Float[Array, " b"]:
    """Softmax cross-entropy (nats); smoothing spreads that share of the target evenly over all classes, the label's included."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    target = jax.nn.one_hot(labels, logits.shape[-1]) * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    return -(target * log_probs).sum(-1)

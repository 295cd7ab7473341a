"""Learning rate as a function of the step."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Schedule = Callable[[ArrayLike], Float[Array, ""]]


def warmup_cosine(*, peak_lr: float, end_lr: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Rises linearly from 0 to `peak_lr` at `warmup_steps`, then falls along half a cosine to `end_lr` at `total_steps`."""

    def learning_rate(step: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0, 1)
        cosine = end_lr + (peak_lr - end_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, peak_lr * step / max(warmup_steps, 1), cosine)

    return learning_rate

"""Learning rate as a function of the step."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vitlab.config import OptimizerConfig
from vitlab.train.periods import Periods

Schedule = Callable[[ArrayLike], Float[Array, ""]]


def make_schedule(config: OptimizerConfig, periods: Periods) -> Schedule:
    """Rises linearly from 0 to `peak_lr` over the warm-up, then follows `config.schedule`.

    With s steps since the warm-up and n from there to the end:

    cosine: half a cosine to `end_lr` (arXiv:1608.03983, eq. 5). linear: a line to `end_lr`.
    constant: `peak_lr`. step: `peak_lr` times `decay_factor` for every whole `decay_every` since
    the beginning of the run, as in torch and timm. rsqrt: peak_lr * sqrt(t / (t + s)) with the
    timescale t of `decay_every`, as in big_vision (arXiv:2106.04560). wsd: `peak_lr`, warm-up,
    stable, decay (arXiv:2404.06395). The last two end in a line to `end_lr` over the `cooldown`.
    """
    warmup, total = periods.warmup, periods.total
    rest, every = max(total - warmup, 1), max(periods.decay_every, 1)

    def shape(step: Array) -> Array:
        """Falls from 1 (peak) to 0 (`end_lr`) for cosine and linear, else a factor of the peak."""
        since = jnp.maximum(step - warmup, 0)
        progress = jnp.clip(since / rest, 0, 1)
        return {
            "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": lambda: 1 - progress,
            "step": lambda: config.decay_factor ** jnp.floor(step / every),
            "rsqrt": lambda: jnp.sqrt(every / (every + since)),
        }.get(config.schedule, lambda: jnp.ones(()))()

    def learning_rate(step: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        peak, end = config.peak_lr, config.end_lr
        value = end + (peak - end) * shape(step) if config.schedule in ("cosine", "linear") else peak * shape(step)
        if config.schedule in ("rsqrt", "wsd") and periods.cooldown:
            left = jnp.clip((total - step) / periods.cooldown, 0, 1)
            value = end + (value - end) * left
        return jnp.where(step < warmup, peak * step / max(warmup, 1), value)

    return learning_rate

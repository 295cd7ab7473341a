"""All that changes during training, as one plain dict; what a checkpoint holds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from vitlab.train.functional import Weights

State = dict[str, Any]  # params, model_state, opt_state, step (int32, steps done), interval (sums since the last log)


def make_state(weights: Weights, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    interval = {"loss": jnp.zeros((), jnp.float32), "correct": jnp.zeros((), jnp.int32), "images": jnp.zeros((), jnp.int32)}
    return {**weights, "opt_state": optimizer.init(weights["params"]), "step": jnp.zeros((), jnp.int32), "interval": interval}


def abstract_state(create: Callable[[], Any], sharding: NamedSharding) -> Any:
    """Shapes, dtypes and sharding of what `create` returns, without making it."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(create))

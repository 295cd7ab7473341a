"""AdamW, and which parameters decay."""

import re
from typing import Any

import jax
import optax

from vitlab.config import OptimizerConfig
from vitlab.train.paths import leaf_names
from vitlab.train.schedule import Schedule

# Beside these, nothing with one dimension or none decays: biases, scales of norms and of layer scale.
_NO_DECAY = re.compile(r"(^|/)(\w*pos_embed|\w+_token|register_tokens|rel_pos_bias|\w*bias_table|bias)$")


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: matrices and convolution kernels, not positions, tokens, biases or norms."""
    leaves, treedef = jax.tree.flatten(params)
    decays = [leaf.ndim > 1 and not _NO_DECAY.search(name) for name, leaf in zip(leaf_names(params), leaves, strict=True)]
    return jax.tree.unflatten(treedef, decays)


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""
    adamw = optax.adamw(schedule, b1=config.beta1, b2=config.beta2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask)
    return adamw if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

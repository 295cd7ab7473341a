"""Optimizers of optax by name; decay, layer-wise rates and freezing mean the same for each."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vitlab.config import OptimizerConfig
from vitlab.train.groups import Groups
from vitlab.train.schedule import Schedule

_MUON_RMS = 0.2  # root mean square of an update, as Adam's is, so that Adam's rate fits (arXiv:2502.16982, eq. 4)


def make_optimizer(config: OptimizerConfig, schedule: Schedule, groups: Groups) -> optax.GradientTransformation:
    """The optimizer of the trained parameters.

    Update = -rate * (direction + weight_decay * parameter); the rate is the schedule's times the
    group's. The directions are AdamW (arXiv:1711.05101), LAMB (arXiv:1904.00962), Lion
    (arXiv:2302.06675), Adafactor as in big_vision (arXiv:2106.04560, 3.4), schedule-free AdamW
    (arXiv:2405.15682), and Muon on matrices and full convolutions with Nesterov's Adam for the
    other parameters, as in optax. SGD has Nesterov's momentum `beta1`, and its decay joins the
    gradient before the momentum, as in torch. Gradients are first clipped by their global norm.
    """
    free = config.name == "schedule_free_adamw"
    steps = [
        optax.identity(),  # keeps the names that the other states have in checkpoints
        *([] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]),
        *_DIRECTIONS[config.name](config, groups),
        optax.scale_by_learning_rate(schedule),
        _scale(groups),
    ]
    optimizer = optax.chain(*steps)
    return contrib.schedule_free(optimizer, learning_rate=schedule, b1=config.beta1) if free else optimizer


def averaged_params(config: OptimizerConfig, opt_state: Any, params: Any) -> Any:
    """Parameters that schedule-free training evaluates in place of the trained ones."""
    assert config.name == "schedule_free_adamw"
    return contrib.schedule_free_eval_params(opt_state, params)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.eps, mu_dtype=jnp.dtype(config.moment_dtype))


def _decay(config: OptimizerConfig, groups: Groups) -> optax.GradientTransformation:
    return optax.add_decayed_weights(config.weight_decay, groups.decays)


def _adamw(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    return [_adam(config), _decay(config, groups)]


def _lamb(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    return [*_adamw(config, groups), optax.scale_by_trust_ratio()]


def _lion(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    return [optax.scale_by_lion(config.beta1, config.beta2, mu_dtype=jnp.dtype(config.moment_dtype)), _decay(config, groups)]


def _sgd(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    return [_decay(config, groups), optax.trace(config.beta1, nesterov=True, accumulator_dtype=jnp.dtype(config.moment_dtype))]


def _adafactor(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_factored_rms(min_dim_size_to_factor=32),
        optax.clip_by_block_rms(1.0),
        optax.ema(config.beta1, debias=False, accumulator_dtype=jnp.dtype(config.moment_dtype)),
        _decay(config, groups),
    ]


def _muon(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    muon = contrib.muon(
        1.0,
        beta=config.momentum,
        eps=config.eps,
        mu_dtype=jnp.dtype(config.moment_dtype),
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=functools.partial(_muon_dimensions, groups),
        consistent_rms=_MUON_RMS,
    )
    return [muon, optax.scale(-1.0), _decay(config, groups)]


def _schedule_free(config: OptimizerConfig, groups: Groups) -> list[optax.GradientTransformation]:
    return [optax.scale_by_rms(config.beta2, config.eps, eps_in_sqrt=False, bias_correction=True), _decay(config, groups)]


_DIRECTIONS: dict[str, Callable[[OptimizerConfig, Groups], list[optax.GradientTransformation]]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "lion": _lion,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "muon": _muon,
    "schedule_free_adamw": _schedule_free,
}


def _muon_dimensions(groups: Groups, params: Any) -> Any:
    """Input and output dimensions of each kernel; None for parameters that Adam updates."""

    def dimensions(orthogonal: bool, leaf: Any) -> Any:  # optax masks the leaves that Adam updates
        if not orthogonal:
            return None
        return contrib.MuonDimensionNumbers(reduction_axis=tuple(range(leaf.ndim - 1)), output_axis=leaf.ndim - 1)

    return jax.tree.map(dimensions, groups.muon, params)


def _scale(groups: Groups) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, scale: u if scale == 1 else u * scale, updates, groups.scales))

"""Initial values, computed on the host by numpy.

XLA takes half a minute to compile the random numbers of a deep network; numpy draws them in less than a second, and the
same bits whatever the backend, the mesh and the number of processes.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class InitRngs(nnx.Rngs):
    """Given to a layer in place of `nnx.Rngs`, has numpy draw its initial values; with `nnx.Rngs`, `jax.random` does.

    Without a seed, zeros stand for random numbers: for shapes, under `nnx.eval_shape`.
    """

    def __init__(self, seed: int | None):
        super().__init__()
        self._seed, self._draws = seed, itertools.count()

    def params(self) -> Any:
        """What the initial values of the next parameter are drawn from."""
        return None if self._seed is None else np.random.default_rng((self._seed, next(self._draws)))


@functools.cache
def normal(std: float) -> nnx.Initializer:
    """Normal of mean zero."""
    return _drawn(
        lambda key, shape: np.float32(std) * key.standard_normal(shape, np.float32),
        lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype),
    )


@functools.cache
def uniform(bound: float) -> nnx.Initializer:
    """Uniform in [-bound, bound)."""
    return _drawn(
        lambda key, shape: np.float32(bound) * (2 * key.random(shape, np.float32) - 1),
        lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
    )


def _drawn(by_numpy: Callable[..., np.ndarray], by_jax: Callable[..., jax.Array]) -> nnx.Initializer:
    """What draws as the key tells it to, see `InitRngs`."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        if key is None:
            return jnp.zeros(shape, dtype)
        return jnp.asarray(by_numpy(key, shape), dtype) if isinstance(key, np.random.Generator) else by_jax(key, shape, dtype)

    return init


def he_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Of a kernel [k, k, in, out]: normal of variance 2 / (k * k * out) (He et al., arXiv:1502.01852, eq. 14)."""
    return normal(math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1])))(key, shape, dtype, out_sharding)


def lecun_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Of a kernel [..., out]: normal, its variance one over the number of inputs to an output."""
    return normal(1 / math.sqrt(math.prod(shape[:-1])))(key, shape, dtype, out_sharding)


def torch_uniform(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Of a kernel [k, k, in, out], what torch leaves a convolution with: uniform of variance 1 / (3 * k * k * in)."""
    return uniform(1 / math.sqrt(math.prod(shape[:-1])))(key, shape, dtype, out_sharding)


def constant(value: float) -> nnx.Initializer:
    """The same number everywhere."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del key, out_sharding
        return full(shape, value, dtype)

    return init


def full(shape: int | tuple[int, ...], value: float, dtype: Any = jnp.float32) -> jax.Array:
    """An array of one value, for which nothing is compiled, unlike `jnp.full`."""
    return jnp.asarray(np.full(shape, value, np.float32), dtype)


normal_init = normal(0.02)  # torch's trunc_normal_(std=0.02) truncates at +-2, a hundred deviations out: it is a plain normal
zeros_init, ones_init = constant(0.0), constant(1.0)

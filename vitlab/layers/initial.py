"""Initial values of parameters, drawn on the host by numpy.

XLA takes half a minute to compile the random numbers of a deep network; numpy draws them in less
than a second. The bits are equal on every backend, mesh and number of processes.
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

__all__ = [
    "HostKey",
    "InitRngs",
    "constant",
    "full",
    "gabor",
    "he_normal",
    "lecun_normal",
    "normal",
    "normal_init",
    "ones_init",
    "step_bias",
    "torch_uniform",
    "uniform",
    "zeros_init",
]


class HostKey(np.ndarray):
    """Key of one parameter: a raw key of `jax.random`, uint32 [2], with a numpy generator.

    Initializers of this module draw from the generator; all others, such as those of `flax.nnx`,
    see an ordinary raw key.
    """

    generator: np.random.Generator | None = None  # None: zeros stand for random numbers


class InitRngs(nnx.Rngs):
    """Random numbers for creating layers: makes this module's initializers draw by numpy.

    A layer that is given plain `nnx.Rngs` instead draws by `jax.random`. Without a seed, zeros
    stand for random numbers, which is enough for shapes under `nnx.eval_shape`. Layers of
    `flax.nnx` take these too; their values are drawn by `jax.random` from keys that follow from the
    seed.
    """

    def __init__(self, seed: int | None):
        super().__init__()
        self._seed, self._draws = seed, itertools.count()

    def params(self) -> HostKey:
        """Returns the key of the next parameter."""
        if self._seed is None:
            return np.zeros(2, np.uint32).view(HostKey)
        sequence = np.random.SeedSequence((self._seed, next(self._draws)))
        key = sequence.generate_state(2).view(HostKey)
        key.generator = np.random.default_rng(sequence)
        return key

    def __getitem__(self, name: str) -> Any:
        """Returns a stream of random numbers other than parameters', created at the first use."""
        if name not in vars(self):
            tag = tuple(name.encode())  # makes streams of different names differ
            state = np.random.SeedSequence((self._seed or 0, *tag)).generate_state(2)
            setattr(self, name, nnx.RngStream(jax.random.wrap_key_data(jnp.asarray(state)), tag=name))
        return vars(self)[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def split(self, k: Any) -> nnx.Rngs:
        """Returns plain `nnx.Rngs` with split keys, for layers created under `nnx.vmap`."""
        return self._plain().split(k)

    def fork(self, **options: Any) -> nnx.Rngs:
        """Returns plain `nnx.Rngs` forked from the next key."""
        return self._plain().fork(**options)

    def _plain(self) -> nnx.Rngs:
        return nnx.Rngs(jax.random.wrap_key_data(jnp.asarray(np.asarray(self.params()))))


@functools.cache
def normal(std: float) -> nnx.Initializer:
    """Initializer: normal with mean zero."""
    return _drawn(
        lambda key, shape: np.float32(std) * key.standard_normal(shape, np.float32),
        lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype),
    )


@functools.cache
def uniform(bound: float) -> nnx.Initializer:
    """Initializer: uniform in [-bound, bound)."""
    return _drawn(
        lambda key, shape: np.float32(bound) * (2 * key.random(shape, np.float32) - 1),
        lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
    )


@functools.cache
def gabor(alpha: float, omega: float) -> nnx.Initializer:
    """Frequencies: uniform in [-1, 1) / sqrt(inputs), times 2 pi omega and a draw of the gamma
    distribution of this shape (scale 1).
    """
    factor = 2 * math.pi * omega
    return _drawn(
        lambda key, shape: np.asarray(
            factor / math.sqrt(shape[0]) * (2 * key.random(shape) - 1) * key.gamma(alpha, size=shape), np.float32
        ),
        lambda key, shape, dtype: (
            factor
            / math.sqrt(shape[0])
            * jax.random.uniform(key, shape, dtype, -1, 1)
            * jax.random.gamma(jax.random.split(key)[0], alpha, shape)
        ),
    )


@functools.cache
def step_bias(least: float, most: float) -> nnx.Initializer:
    """Numbers whose softplus is between two positive steps, uniform in the logarithm.

    Mamba, arXiv:2312.00752, section 3.6.
    """

    def inverse(np_or_jnp, uniform):
        steps = np_or_jnp.exp(math.log(least) + uniform * math.log(most / least))
        return steps + np_or_jnp.log(-np_or_jnp.expm1(-steps))

    return _drawn(
        lambda key, shape: np.asarray(inverse(np, key.random(shape)), np.float32),
        lambda key, shape, dtype: inverse(jnp, jax.random.uniform(key, shape, dtype)),
    )


def _drawn(by_numpy: Callable[..., np.ndarray], by_jax: Callable[..., jax.Array]) -> nnx.Initializer:
    """Returns an initializer that draws by numpy or by jax.random, depending on the key's type."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        if not isinstance(key, HostKey):
            return by_jax(key, shape, dtype)
        return jnp.zeros(shape, dtype) if key.generator is None else jnp.asarray(by_numpy(key.generator, shape), dtype)

    return init


def he_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Initializer of a kernel [k, k, in, out]: normal with variance 2 / (k * k * out).

    He et al., arXiv:1502.01852, eq. 14.
    """
    return normal(math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1])))(key, shape, dtype, out_sharding)


def lecun_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Initializer of a kernel [..., out]: normal, variance 1 / (inputs to an output)."""
    return normal(1 / math.sqrt(math.prod(shape[:-1])))(key, shape, dtype, out_sharding)


def torch_uniform(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Initializer of a kernel [k, k, in, out]: uniform with variance 1 / (3 * k * k * in).

    torch initialises its convolutions so by default.
    """
    return uniform(1 / math.sqrt(math.prod(shape[:-1])))(key, shape, dtype, out_sharding)


def constant(value: float) -> nnx.Initializer:
    """Returns an initializer that sets every element to the value."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del key, out_sharding
        return full(shape, value, dtype)

    return init


def full(shape: int | tuple[int, ...], value: float, dtype: Any = jnp.float32) -> jax.Array:
    """Returns an array filled with one value; unlike `jnp.full` it compiles nothing."""
    return jnp.asarray(np.full(shape, value, np.float32), dtype)


normal_init = normal(0.02)  # torch's trunc_normal_(std=0.02) truncates at +-2, a hundred deviations out: it is a plain normal
zeros_init, ones_init = constant(0.0), constant(1.0)

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
    "torch_uniform",
    "uniform",
    "zeros_init",
]


class HostKey(np.ndarray):
    """Key of one parameter: a raw key of `jax.random`, uint32 [2], with a generator of numpy.

    The initializers of this module draw from the generator, all others, such as those of `flax.nnx`, see a key like any other.
    """

    generator: np.random.Generator | None = None  # None: zeros stand for random numbers


class InitRngs(nnx.Rngs):
    """Given to a layer in place of `nnx.Rngs`, has numpy draw its initial values; with `nnx.Rngs`, `jax.random` does.

    Without a seed, zeros stand for random numbers: for shapes, under `nnx.eval_shape`. Layers of `flax.nnx` take it too; their
    values are drawn by `jax.random` from keys that follow from the seed.
    """

    def __init__(self, seed: int | None):
        super().__init__()
        self._seed, self._draws = seed, itertools.count()

    def params(self) -> HostKey:
        """The key of the next parameter."""
        if self._seed is None:
            return np.zeros(2, np.uint32).view(HostKey)
        sequence = np.random.SeedSequence((self._seed, next(self._draws)))
        key = sequence.generate_state(2).view(HostKey)
        key.generator = np.random.default_rng(sequence)
        return key

    def __getitem__(self, name: str) -> Any:
        """A stream of random numbers other than the parameters', made when a layer first asks for it."""
        if name not in vars(self):
            tag = tuple(name.encode())  # streams of other names are other ones
            state = np.random.SeedSequence((self._seed or 0, *tag)).generate_state(2)
            setattr(self, name, nnx.RngStream(jax.random.wrap_key_data(jnp.asarray(state)), tag=name))
        return vars(self)[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def split(self, k: Any) -> nnx.Rngs:
        """Plain `nnx.Rngs` with split keys, for layers that are made under `nnx.vmap`."""
        return self._plain().split(k)

    def fork(self, **options: Any) -> nnx.Rngs:
        """Plain `nnx.Rngs` that go on from here."""
        return self._plain().fork(**options)

    def _plain(self) -> nnx.Rngs:
        return nnx.Rngs(jax.random.wrap_key_data(jnp.asarray(np.asarray(self.params()))))


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


@functools.cache
def gabor(alpha: float, omega: float) -> nnx.Initializer:
    """Frequencies: uniform in [-1, 1) / sqrt(inputs), times 2 pi omega and a draw of the gamma distribution of this shape (scale 1)."""
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


def _drawn(by_numpy: Callable[..., np.ndarray], by_jax: Callable[..., jax.Array]) -> nnx.Initializer:
    """An initializer that draws by numpy or by jax.random, by the type of the key, see `InitRngs`."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        if not isinstance(key, HostKey):
            return by_jax(key, shape, dtype)
        return jnp.zeros(shape, dtype) if key.generator is None else jnp.asarray(by_numpy(key.generator, shape), dtype)

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

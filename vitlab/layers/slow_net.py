"""Slow nets (Zhang, arXiv:2401.17948, section 3.1): a small network of coordinates whose values are
another's weights.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.gelu import gelu
from vitlab.layers.initial import constant, full, gabor, torch_uniform, uniform, zeros_init
from vitlab.layers.linear import Linear
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.roles import declare

_OMEGA, _ALPHA = 2000.0, 6.0  # factor of the frequencies, and shape of the gamma distribution that they are drawn from
_KEPT, _NORMALISED = 1.0, 0.1  # parts of the renormalised features that are as they were, and of unit length


class SlowNet(nnx.Module):
    """Products of sines of the coordinates and of linear maps (MAGNet, arXiv:2111.13583's form) on
    a grid of fixed size.

    Coordinates are -1 to 1 along each axis. All is float32: the frequencies are high.
    """

    def __init__(self, sides: tuple[int, ...], out_dim: int, *, hidden: int, depth: int, rngs: nnx.Rngs):
        self.sides = sides
        self.bias_p = declare(nnx.Param(full(sides, 0.0)), "position")
        self.linears = nnx.List([_linear(hidden, hidden, bias=1.0, rngs=rngs) for _ in range(depth)])
        self.output_linear = _linear(hidden, out_dim, gain=1 / math.sqrt(math.prod(sides)), rngs=rngs)
        self.filters = nnx.List(
            [
                nnx.Linear(len(sides), hidden, kernel_init=gabor(_ALPHA / (layer + 1), _OMEGA), bias_init=zeros_init, rngs=rngs)
                for layer in range(depth + 1)
            ]
        )

    def __call__(self) -> Float[Array, "*sides out_dim"]:
        sines = self._sines()
        x = sines[0]
        for sine, linear in zip(sines[1:], self.linears, strict=True):
            x = sine * linear(x) + self.bias_p[...][..., None]
        return self.output_linear(x)

    def _sines(self) -> list[Float[Array, "*sides hidden"]]:
        axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in self.sides]
        coordinates = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1))
        return [jnp.sin(f(coordinates)) for f in self.filters]


class ContextSlowNet(SlowNet):
    """A slow net of depthwise kernels whose features are weighed by those of a map, averaged over
    the batch.

    As in the authors' code the features are renormalised: as they were, without a gradient, plus a
    tenth of those of unit length.
    """

    def __init__(self, side: int, dim: int, *, hidden: int, depth: int, rngs: nnx.Rngs):
        super().__init__((side, side), dim, hidden=hidden, depth=depth, rngs=rngs)
        self.fast_reduce, self.fast_fc1 = (_linear(n, hidden, kernel_init=torch_uniform, rngs=rngs) for n in (dim, hidden))
        self.fast_linears_x = nnx.List([_linear(hidden, hidden, bias=1.0, rngs=rngs) for _ in range(depth)])

    def kernel(self, x: Float[Array, "b h w c"]) -> Float[Array, "side side 1 c"]:
        """The kernel, for a convolution whose groups are the channels of x."""
        context = self.fast_reduce(adaptive_average_pool(x.astype(jnp.float32), (self.sides[0], self.sides[1])))
        context = gelu(self.fast_fc1(context.mean(0)))
        sines = self._sines()
        y = sines[0]
        for sine, linear, fast in zip(sines[1:], self.linears, self.fast_linears_x, strict=True):
            y = sine * linear(y) + self.bias_p[...][..., None]
            length = jnp.sqrt(jnp.maximum((y * y).sum((0, 1), keepdims=True), 1e-24))
            y = (_KEPT * jax.lax.stop_gradient(y) + _NORMALISED * y / length) * fast(context)
        return self.output_linear(y)[:, :, None]


def _linear(
    in_dim: int, out_dim: int, *, bias: float = 0.0, gain: float = 1.0, kernel_init: nnx.Initializer | None = None, rngs
) -> nnx.Linear:
    """A linear layer whose weights begin uniform, of variance gain^2 / in_dim."""
    layer = Linear(in_dim, out_dim, rngs=rngs)
    init = uniform(gain * math.sqrt(3 / in_dim)) if kernel_init is None else kernel_init
    layer.kernel = nnx.Param(init(rngs.params(), (in_dim, out_dim)))
    layer.bias = nnx.Param(constant(bias)(rngs.params(), (out_dim,)))
    return layer

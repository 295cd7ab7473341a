"""The kernels of norm and products against their formulas, interpreted; and where they say that they cannot run."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.normed import Norm, norm_linear, norm_mlp, unsupported_reason
from pallas_kernels.normed.gelu import gelu, gelu_and_slope
from pallas_kernels.normed.rows import Layout
from pallas_kernels.target import assume
from tests.processes import run_on_four_devices

EPS = 1e-6
# Over the largest value: the map, the norm's result, GELU's and the result are rounded to bfloat16, half a unit each, and GELU's
# polynomial adds a third of one.
TOLERANCE = 2 * 2**-8


def layer_norm(x, scale, bias):
    x = x.astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * scale + bias


def linear(x, scale, bias, kernel, offset):
    return (layer_norm(x, scale, bias) @ kernel + offset, x)


def plain_linear(x, scale, bias, kernel, offset):
    return x.astype(jnp.float32) @ kernel + offset


def mlp(x, scale, bias, kernel1, bias1, kernel2, bias2):
    h = jax.nn.gelu(layer_norm(x, scale, bias) @ kernel1 + bias1, approximate=False)
    return x + h @ kernel2 + bias2


def plain_mlp(x, scale, bias, kernel1, bias1, kernel2, bias2):
    return jax.nn.gelu(x.astype(jnp.float32) @ kernel1 + bias1, approximate=False) @ kernel2 + bias2


def linear_kernel(x, scale, bias, kernel, offset):
    return norm_linear(x, kernel, offset, norm=Norm(scale, bias, EPS), passes=True, interpret=True)


def plain_linear_kernel(x, scale, bias, kernel, offset):
    return norm_linear(x, kernel, offset, norm=None, interpret=True)


def mlp_kernel(x, scale, bias, *layers):
    return norm_mlp(x, *layers, norm=Norm(scale, bias, EPS), adds=True, interpret=True)


def plain_mlp_kernel(x, scale, bias, *layers):
    return norm_mlp(x, *layers, norm=None, interpret=True)


CASES = {
    "linear": (linear, linear_kernel, 1, (4, 5, 32)),
    "plain_linear": (plain_linear, plain_linear_kernel, 1, (4, 5, 32)),
    "mlp": (mlp, mlp_kernel, 2, (10, 2, 7, 24)),  # more lines than are written out
    "plain_mlp": (plain_mlp, plain_mlp_kernel, 2, (1, 2056, 16)),  # more tokens than a program has rows
}


@pytest.mark.parametrize(("name", "loops"), [*((name, False) for name in CASES), ("linear", True), ("mlp", True)])
def test_values_and_gradients_are_those_of_the_formula(monkeypatch, name, loops):
    monkeypatch.setattr("pallas_kernels.normed.rows._UNROLLED_CHUNKS", 1 if loops else 3)
    monkeypatch.setattr("pallas_kernels.normed.rows._CHUNKS", (128,))  # two chunks of the layers below
    formula, kernel, count, shape = CASES[name]
    keys = iter(jax.random.split(jax.random.key(0), 9))

    def normal(*shape: int, scale: float = 0.2):
        return (scale * jax.random.normal(next(keys), shape)).astype(jnp.bfloat16).astype(jnp.float32)

    d, hidden = shape[-1], 256
    layers = (normal(d, hidden), normal(hidden)) + ((normal(hidden, d), normal(d)) if count == 2 else ())
    arguments = (normal(*shape, scale=1.0).astype(jnp.bfloat16), 1 + normal(d), normal(d), *layers)

    @functools.partial(jax.jit, static_argnums=0)
    def run(fn, arguments):
        out, back = jax.vjp(fn, *arguments)
        return out, back(jax.tree.map(lambda x: jax.random.normal(jax.random.key(5), x.shape, jnp.bfloat16).astype(x.dtype), out))

    ours, theirs = run(kernel, arguments), run(formula, arguments)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.float32(a), np.float32(b)
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


def test_gelu_and_its_slope_are_exact_to_bfloat16():
    x = np.linspace(-12, 12, 9601)
    phi = 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    value, slope = (np.float64(y) for y in gelu_and_slope(jnp.asarray(x, jnp.float32)))
    assert np.array_equal(value, np.float64(gelu(jnp.asarray(x, jnp.float32))))
    assert np.abs(value - x * phi).max() < 2e-4 and np.abs(slope - phi - x * density).max() < 2e-4
    near = np.abs(x) < 3.5
    assert (np.abs(value - x * phi) <= 2**-10 * np.abs(x * phi))[near].all()  # half a unit of bfloat16 is 2**-9


def reason(shape, dtype=jnp.bfloat16, widths=(1536, 384), platform="tpu"):
    with assume(platform):
        return unsupported_reason(shape, dtype, widths)


def test_the_predicate_says_why_a_kernel_cannot_run():
    assert reason((64, 197, 384)) is None
    assert reason((64, 7, 7, 384)) is None
    assert reason((64, 197, 384), platform="cpu") == "it needs a TPU, not cpu"
    assert reason((64, 197, 384), dtype=jnp.float32) == "dtype float32 is not bfloat16"
    assert reason((64, 384)) == "a map (64, 384) has no lines of tokens"
    assert reason((64, 197, 100), widths=(300,)) is None
    assert reason((64, 197, 100), widths=(1000,)) == "a width of 1000, above 768, is no multiple of 128"
    assert "1037 tokens cannot be cut" in reason((2, 1037, 64), widths=(256, 64))
    assert "MiB of VMEM" in reason((64, 197, 2048), widths=(8192, 2048))


def test_lines_fill_a_program_and_long_ones_are_cut():
    assert Layout.of((64, 196, 384), jnp.bfloat16, (1536, 384)).per_program == 4
    assert Layout.of((64, 7, 7, 768), jnp.bfloat16, (3072, 768)).rows == 896  # 112 rows of 7 pixels, padded to 8
    long = Layout.of((2, 4096, 96), jnp.bfloat16, (384, 96))
    assert (long.lines, long.n, long.per_program) == (8, 1024, 1)


SPLIT = """
    import jax, jax.numpy as jnp
    from jax.sharding import AxisType
    from pallas_kernels.normed import Norm, norm_mlp

    # The interpreter of kernels does not pass the check of what varies, so the types alone are looked at.
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    layers = jnp.ones((16, 128)), jnp.ones(128), jnp.ones((128, 16)), jnp.ones(16)
    x, scale = jnp.ones((8, 5, 16), jnp.bfloat16), jnp.ones(16)
    with jax.set_mesh(mesh):
        loss = lambda scale, *layers: norm_mlp(x, *layers, norm=Norm(scale, scale, 1e-6)).astype(jnp.float32).sum()
        text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(scale, *layers))
    assert "bf16[2,5,16]" in text and text.count("psum") >= 6, text
    print("passed")
"""


def test_devices_share_the_images_and_add_up_the_gradients_of_parameters():
    assert "passed" in run_on_four_devices(SPLIT).stdout

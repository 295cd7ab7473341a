"""Every form of a convolution equals XLA's own, in values and gradients.

All strides, paddings and dilations are covered.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import target
from vitlab.layers.conv_forms import conv_general_dilated

CASES = [  # side, channels, outputs, groups, kernel, stride, padding, dilation
    (7, 6, 6, 6, (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1)),
    (8, 4, 4, 4, (7, 7), (1, 1), [(3, 3), (3, 3)], (1, 1)),
    (11, 3, 3, 3, (9, 9), (1, 1), [(4, 4), (4, 4)], (1, 1)),  # rows in a loop
    (12, 3, 3, 3, (7, 5), (1, 1), [(9, 9), (6, 6)], (3, 3)),
    (9, 4, 4, 4, (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1)),
    (8, 4, 4, 4, (3, 3), (2, 3), [(1, 1), (0, 2)], (2, 1)),  # some pixels are in no window
    (8, 4, 4, 4, (3, 3), (2, 2), "SAME", (1, 1)),
    (6, 8, 4, 2, (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1)),
    (6, 8, 8, 4, (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1)),
    (4, 66, 66, 33, (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1)),  # too many groups to split
    (4, 4, 8, 4, (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1)),  # two outputs per channel
    (5, 4, 6, 1, (1, 1), (1, 1), [(0, 0), (0, 0)], (1, 1)),
    (7, 4, 6, 1, (1, 1), (2, 3), "SAME", (1, 1)),
    (5, 4, 6, 1, (1, 1), (1, 1), [(1, 1), (0, 0)], (1, 1)),  # a border of zeros
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_convolution_of_xla(case):
    side, channels, outputs, groups, size, strides, padding, dilation = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, side, side + 1, channels)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((*size, channels // groups, outputs)), jnp.float32)
    convolve = functools.partial(
        conv_general_dilated,
        window_strides=strides,
        padding=padding,
        lhs_dilation=(1, 1),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )

    def run(platform):
        with target.assume(platform):
            value, back = jax.vjp(lambda x, kernel: convolve(x, kernel), x, kernel)
            return value, back(jnp.asarray(np.random.default_rng(1).standard_normal(value.shape), jnp.float32))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run("cpu"), run("any"))


def test_sums_of_bfloat16_are_made_in_float32():
    x, kernel = jnp.ones((1, 32, 32, 2), jnp.bfloat16), jnp.full((17, 17, 1, 2), 1 + 2**-7, jnp.bfloat16)
    options = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}
    out = conv_general_dilated(x, kernel, (1, 1), [(0, 0), (0, 0)], **options)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 289 * (1 + 2**-7), rtol=2**-8)


def test_another_platform_keeps_the_convolution():
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    options = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}
    for platform, expected in (("tpu", True), ("gpu", True), ("cpu", False)):
        with target.assume(platform):
            jaxpr = jax.make_jaxpr(lambda x, kernel: conv_general_dilated(x, kernel, (1, 1), "SAME", **options))(x, kernel)
        assert ("conv_general_dilated" in str(jaxpr)) == expected


def test_a_tpu_s_convolution_in_groups_is_kept_apart_from_slices_forward_and_backward():
    x, kernel = jax.random.normal(jax.random.key(0), (1, 8, 8, 4)), jax.random.normal(jax.random.key(1), (3, 3, 1, 4))
    options = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}

    def run(x, kernel):
        value, back = jax.vjp(lambda x, kernel: conv_general_dilated(x, kernel, (1, 1), "SAME", **options), x, kernel)
        return value, back(value)

    with target.assume("any"):
        expected = run(x, kernel)
    with target.assume("tpu"):
        assert str(jax.make_jaxpr(run)(x, kernel)).count("= optimization_barrier") == 2
        jax.tree.map(np.testing.assert_array_equal, run(x, kernel), expected)


def test_a_tpu_s_depthwise_convolution_in_bfloat16_is_a_kernel_forward_and_backward():
    options = {"lhs_dilation": (1, 1), "rhs_dilation": (2, 2), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}

    def text(dtype, stride, outputs=4):
        x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), dtype), jax.ShapeDtypeStruct((3, 3, 1, outputs), dtype)
        with target.assume("tpu"):
            convolve = functools.partial(conv_general_dilated, window_strides=(stride, stride), padding=[(2, 2), (2, 2)], **options)
            return str(jax.make_jaxpr(lambda x, kernel: jax.vjp(convolve, x, kernel)[1](convolve(x, kernel)))(x, kernel))

    assert "depthwise_forward" in text(jnp.bfloat16, 1) and "depthwise_backward" in text(jnp.bfloat16, 1)
    for other in (text(jnp.float32, 1), text(jnp.bfloat16, 2), text(jnp.bfloat16, 1, outputs=8)):
        assert "depthwise" not in other and "conv_general_dilated" in other

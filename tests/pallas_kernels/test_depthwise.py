"""The kernels of depthwise convolutions against XLA's, interpreted; and where they say that they
cannot run.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.depthwise import depthwise, unsupported_reason
from pallas_kernels.depthwise.layout import Layout
from pallas_kernels.target import assume

CASES = {  # map, kernel, zeros around the map, dilation
    "same": ((2, 5, 6, 3), (3, 3), ((1, 1), (1, 1)), (1, 1)),
    "wider_at_the_end": ((1, 4, 8, 3), (3, 3), ((1, 1), (1, 2)), (1, 1)),
    "rows_in_a_loop": ((1, 9, 10, 130), (9, 2), ((8, 0), (1, 1)), (1, 1)),  # and channels of two programs
    "dilated": ((3, 7, 7, 4), (3, 3), ((2, 2), (2, 2)), (2, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_convolution(name):
    shape, size, pads, dilation = CASES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (*size, shape[-1]))

    def formula(x, kernel):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": shape[-1]}
        return jax.lax.conv_general_dilated(x, kernel[:, :, None], (1, 1), pads, rhs_dilation=dilation, **options)

    def ours(x, kernel):
        return depthwise(x, kernel, pads=pads, dilation=dilation, interpret=True)

    def run(fn):
        out, back = jax.vjp(fn, x, kernel)
        return out, back(jax.random.normal(keys[2], out.shape))

    assert unsupported_reason(shape, x.dtype, size, pads=pads, dilation=dilation, interpret=True) is None
    # Both add up float32 products, some hundred at most, in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(ours), run(formula))


def test_sums_of_bfloat16_are_made_in_float32():
    x, kernel = jnp.ones((1, 9, 9, 2), jnp.bfloat16), jnp.full((9, 9, 2), 1 + 2**-7, jnp.bfloat16)
    out = depthwise(x, kernel, pads=((0, 0), (0, 0)), interpret=True)
    assert out.dtype == jnp.bfloat16 and out.shape == (1, 1, 1, 2)
    np.testing.assert_allclose(out.astype(jnp.float32), 81 * (1 + 2**-7), rtol=2**-8)


def test_what_the_kernels_cannot_run_is_said():
    pads = ((1, 1), (1, 1))
    with assume("gpu"):
        assert unsupported_reason((1, 8, 8, 4), jnp.bfloat16, (3, 3), pads=pads) == "it needs a TPU, not gpu"
    for shape, dtype, zeros, said in (
        ((1, 8, 8, 4), jnp.float16, pads, "dtype float16 is none of bfloat16, float32"),
        ((8, 8, 4), jnp.bfloat16, pads, "is not [b, h, w, c]"),
        ((1, 8, 8, 4), jnp.bfloat16, ((3, 0), (1, 1)), "must be from 0 to the reach (2, 2) of the kernel"),
        ((1, 2, 8, 4), jnp.bfloat16, ((0, 0), (1, 1)), "reaches over the map"),
    ):
        assert said in (unsupported_reason(shape, dtype, (3, 3), pads=zeros, interpret=True) or "")
    layout = Layout.of((1, 512, 512, 64), jnp.bfloat16, (7, 7), ((3, 3), (3, 3)), (1, 1))
    assert isinstance(layout, Layout) and "MiB of VMEM" in (layout.unsupported_reason(96 * 2**20) or "")


def test_a_border_holds_all_that_the_kernels_read():
    for width in range(1, 20):
        for low in range(5):
            for high in range(5):
                layout = Layout.of((1, 5, width, 8), jnp.float32, (5, 5), ((2, 2), (low, high)), (1, 1))
                if isinstance(layout, Layout):
                    for each in (layout, dataclasses.replace(layout.turned)):
                        assert each.bordered[1] >= max(each.columns + each.reach[1], each.pads[1][0] + each.turned.columns)

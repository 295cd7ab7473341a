"""Kernels on several devices: each has its images, and gradients of shared arrays are summed."""

import jax
from jax.sharding import AbstractMesh, AxisType

from pallas_kernels.sharding import indivisible
from tests.processes import run_on_four_devices

SPLIT = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from pallas_kernels.sharding import by_images

    shapes = []

    def attend(arrays, bias, mask):
        shapes.append(arrays[0].shape)
        return jnp.where(mask, arrays[0] * arrays[1], 0) * bias

    def loss(arrays, bias, mask):
        return (by_images(attend, arrays, bias, mask) ** 2).sum()

    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    arrays, bias = tuple(rng.normal(size=(2, 8, 5)).astype(np.float32)), rng.normal(size=5).astype(np.float32)
    mask = rng.random((8, 5)) < 0.5
    one = jax.value_and_grad(loss, (0, 1))(arrays, bias, mask)
    split = NamedSharding(mesh, P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)), in_shardings=((split, split), None, split))
        many = step(arrays, bias, mask)
    assert shapes == [(8, 5), (2, 5)], shapes
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
"""


HEADS = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from pallas_kernels.sharding import by_images

    shapes = []

    def attend(arrays, bias, mask):
        shapes.append((arrays[0].shape, bias.shape))
        return jnp.where(mask[..., None, None], arrays[0].prod(3), 0) * bias[None, None, None, :, None]

    def loss(arrays, bias, mask):
        return (by_images(attend, arrays, bias, mask, heads=True) ** 2).sum()

    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    for heads, part in (4, 2), (3, 3):
        arrays, bias = (rng.normal(size=(4, 2, 2, 3, heads, 5)).astype(np.float32),), rng.normal(size=heads).astype(np.float32)
        mask = rng.random((4, 2, 2)) < 0.5
        one = jax.value_and_grad(loss, (0, 1))(arrays, bias, mask)
        with jax.set_mesh(mesh):
            many = jax.jit(jax.value_and_grad(loss, (0, 1)))(arrays, bias, mask)
        assert shapes == [((4, 2, 2, 3, heads, 5), (heads,)), ((2, 2, 2, 3, part, 5), (part,))], shapes
        shapes.clear()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
"""


def test_each_device_has_its_images_and_the_bias_the_sum_of_gradients():
    run_on_four_devices(SPLIT)


def test_devices_along_tensor_have_the_same_images_and_other_heads_or_all_where_they_do_not_divide():
    run_on_four_devices(HEADS)


def test_a_batch_that_the_devices_do_not_divide_is_told():
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)):
        assert indivisible(6) == "6 images cannot be split over 4 devices"
        assert indivisible(8) is None
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)):
        assert indivisible(6) is None
    assert indivisible(7) is None

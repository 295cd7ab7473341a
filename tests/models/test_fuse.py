"""The deployed form of a network is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.conftest import REPRESENTATIVES, apply, small
from vitlab.layers import BatchNorm
from vitlab.models.registry import family_of

FUSABLE = sorted(name for name in REPRESENTATIVES.values() if hasattr(family_of(name).model, "fuse"))
TOLERANCE = 1e-5  # relative to the largest logit; float32 sums in another order


def alive(model):
    """Returns the model with statistics, scales and biases away from their initial values."""
    rng = np.random.default_rng(0)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            for name, spread in (("scale", 0.1), ("bias", 0.1), ("mean", 0.1)):
                leaf = getattr(module, name)
                start = 1.0 if name == "scale" else 0.0
                leaf[...] = jnp.asarray(start + spread * rng.standard_normal(leaf.shape), jnp.float32)
            module.var[...] = jnp.asarray(np.exp(0.2 * rng.standard_normal(module.var.shape)), jnp.float32)
    return model


@pytest.mark.parametrize("name", FUSABLE)
def test_the_fused_network_gives_the_same_logits_with_fewer_parts(name):
    model = alive(small(name, image_size=96))
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 96, 96, 3)), jnp.float32)
    before = apply(model, images)
    fused = model.fuse()
    after = apply(fused, images)
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE * np.abs(before).max())
    count = lambda m: len(jax.tree.leaves(nnx.state(m)))  # noqa: E731
    assert count(fused) < count(model)
    np.testing.assert_array_equal(apply(model, images), before)  # the trained form is untouched

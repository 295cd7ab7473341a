"""iLLaMA's attention is masked after the softmax, and the mask may be soft."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers.rope import rotate, sequence_rotation
from vitlab.models.illama import CausalAttention
from vitlab.models.registry import model_config

ROUNDING = 1e-6  # float32 sums of a few terms in another order


@pytest.mark.parametrize("soft", [0.0, 0.25])
def test_a_token_receives_from_those_before_it_and_a_share_from_later_ones(soft):
    attn = CausalAttention(model_config("illama_tiny", dim=8, num_heads=2, soft_mask_rate=soft), rngs=nnx.Rngs(0))
    attn.qkv.kernel[...] = 20 * attn.qkv.kernel[...]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 8)), jnp.float32)
    q, k, v = np.moveaxis(np.asarray(attn.qkv(x)).reshape(5, 3, 2, 4), 1, 0)
    q, k = (np.asarray(rotate(jnp.asarray(y)[None], sequence_rotation(5, 4)))[0] for y in (q, k))
    weights = np.exp(np.einsum("qhd,khd->hqk", q, k) / 2)
    weights = weights / weights.sum(-1, keepdims=True) * np.where(np.tri(5), 1, soft)
    expected = np.einsum("hqk,khd->qhd", weights, v).reshape(5, 8)
    np.testing.assert_allclose(attn(x)[0], expected @ np.asarray(attn.proj.kernel[...]), atol=ROUNDING)


def test_the_product_of_turned_vectors_depends_on_the_distance():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.float32)
    q, k = (rotate(jnp.broadcast_to(y, (1, 9, 1, 4)), sequence_rotation(9, 4))[0, :, 0] for y in x)
    np.testing.assert_allclose(q[2] @ k[5], q[4] @ k[7], rtol=1e-5)  # float32 sines


def test_heads_of_an_odd_width_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        model_config("illama_tiny", dim=15, num_heads=3)

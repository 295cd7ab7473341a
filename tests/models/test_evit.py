"""EViT keeps the patches that its class token attends to, and its maps know where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.layers.token_reduction import best_tokens, fused_rest, put_back, taken
from vitlab.models.registry import create_model, model_config
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 48, 3)).astype(np.float32)
FIELDS = {"num_classes": 5, "image_size": (32, 48), "patch_size": 8, "depth": 3, "dim": 16, "num_heads": 2}
ROUNDING = 1e-5  # float32 sums in another order


def evit(**fields):
    return create_model("evit_deit_tiny_k07", **(FIELDS | fields))


def test_keeping_all_patches_is_deit():
    model, deit = evit(keep_rate=1.0, reduce_at=(0, 1)), create_model("deit_tiny_patch16", **FIELDS)
    load_weights(deit, to_foreign(model))
    for ours, theirs in zip(model.features(IMAGES), deit.features(IMAGES), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)


def test_each_reduction_keeps_the_fraction_rounded_up_and_one_token_more():
    model = evit(keep_rate=0.5)
    x = model.embed(jnp.asarray(IMAGES))
    counts = []
    for block in model.blocks:
        x, kept = block.reduce(x, train=False, rngs=None)
        counts.append((kept.shape[1], x.shape[1]))
    assert counts == [(12, 14), (7, 9), (4, 6)]  # kept and all tokens of 24, 13 and 8 patches


def test_a_dropped_patch_stays_on_the_map_as_it_was():
    model = evit(keep_rate=0.25, reduce_at=(1,))
    first, *_, last = model.features(IMAGES)
    _, kept = model.blocks[1].reduce(model.blocks[0](model.embed(jnp.asarray(IMAGES)), train=False, rngs=None), train=False, rngs=None)
    same = np.abs(np.asarray(last) - np.asarray(model.norm(first))).max(-1).reshape(2, 24) < ROUNDING
    for row, places in zip(same, np.asarray(kept), strict=True):
        assert set(np.flatnonzero(~row)) == set(places.tolist())


def test_tokens_are_taken_fused_and_put_back():
    x = jnp.arange(8.0).reshape(1, 4, 2)
    scores = jnp.asarray([[0.1, 0.4, 0.2, 0.3]])
    kept = best_tokens(scores, 2)
    np.testing.assert_array_equal(kept, [[1, 3]])
    np.testing.assert_array_equal(taken(x, kept), [[[2, 3], [6, 7]]])
    np.testing.assert_allclose(fused_rest(x, scores, kept), [[[0.2 * 4, 0.1 * 1 + 0.2 * 5]]], rtol=1e-6)
    np.testing.assert_array_equal(put_back(jnp.zeros((1, 4, 2)), taken(x, kept), kept)[0, :, 0], [0, 2, 0, 6])
    np.testing.assert_array_equal(put_back(jnp.zeros((1, 4, 2)), x[:, :1] + 1, jnp.asarray([[4]])), np.zeros((1, 4, 2)))


def test_the_fused_token_has_a_gradient_by_its_weights():
    grads = jax.grad(lambda s: fused_rest(jnp.ones((1, 3, 1)), s, jnp.asarray([[0]])).sum())(jnp.ones((1, 3)))
    np.testing.assert_array_equal(grads, [[0, 1, 1]])


def test_a_keep_rate_above_one_is_refused():
    with pytest.raises(ValueError, match="at most 1"):
        model_config("evit_deit_tiny_k07", keep_rate=1.5)

"""Sparsifiner attends to the keys that its predictor chooses."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers.mask_predictor import MaskPredictor
from vitlab.models.registry import create_model, model_config
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 48, 3)).astype(np.float32)
FIELDS = {"num_classes": 5, "image_size": (32, 48), "patch_size": 8, "depth": 2, "dim": 16, "num_heads": 2}
ROUNDING = 1e-5  # float32 sums in another order


def sparsifiner(name="sparsifiner_small", **fields):
    return create_model(name, **({"reduce_tokens": 2} | FIELDS | fields))


def test_attending_to_all_keys_is_deit():
    model, deit = sparsifiner(keep_rate=1.0), create_model("deit_tiny_patch16", **FIELDS)
    names = to_foreign(model)
    load_weights(deit, {name: value for name, value in names.items() if "mask_predictor" not in name})
    for ours, theirs in zip(model.features(IMAGES), deit.features(IMAGES), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)


def test_the_mask_is_the_largest_entries_of_the_approximation():
    predictor = MaskPredictor(8, grid=(3, 4), rank=5, dim=4, threshold=0.0, num_coefficients=5, rngs=nnx.Rngs(0))
    predictor.proj_back_n[...] = jnp.abs(predictor.proj_back_n[...])  # then the basis is the one that is fitted
    q, k = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1, 13, 2, 8)), jnp.float32)
    mask, scores = np.asarray(predictor(q, k, (3, 4), count=4)), np.asarray(predictor.approximation(q, k, (3, 4)))
    assert mask[:, :, 0].all() and (mask[:, :, 1:].sum(-1) == 4).all()
    for chosen, row in zip(mask[:, :, 1:].reshape(-1, 13), scores.reshape(-1, 13), strict=True):
        assert row[chosen].min() > row[~chosen].max()


def test_pruned_patches_are_zeros_that_change_nothing_afterwards():
    model = sparsifiner(token_keep_rate=0.5, prune_at=(0,))
    x = model.embed(jnp.asarray(IMAGES))
    options = {"grid": (4, 6), "train": False, "rngs": None}
    x, alive = model.blocks[0].prune(x, None, num_alive=25, count=12, **options)
    alive = np.asarray(alive)
    assert (alive.sum(1) == 13).all() and not np.asarray(x)[~alive].any()
    noisy = jnp.where(alive[..., None], x, 7.0)
    ours, other = (model.blocks[1](y, alive=jnp.asarray(alive), num_alive=12, **options) for y in (x, noisy))
    np.testing.assert_allclose(ours, other, atol=ROUNDING)


def test_lvvit_adds_half_of_the_largest_logits_of_the_patches():
    model = sparsifiner("sparsifiner_lvvit_small")
    features = model.features(IMAGES)
    patches = np.asarray(model.aux_head(features[-1])).reshape(2, 24, 5)
    np.testing.assert_allclose(model(IMAGES), model.head(model.pool(features)) + 0.5 * patches.max(1), atol=ROUNDING)


def test_rates_above_one_are_refused():
    with pytest.raises(ValueError, match="at most 1"):
        model_config("sparsifiner_small", keep_rate=2.0)

import jax
import numpy as np
import pytest
from flax import nnx

from vitlab.models.registry import create_model

SMALL = {"image_size": 28, "patch_size": 14, "dim": 16, "depth": 3, "num_heads": 2}
IMAGES = jax.random.normal(jax.random.key(0), (2, 28, 42, 3))


def test_a_distilled_vit_gives_each_head_and_their_mean():
    model = create_model("deit_tiny_distilled_patch16", num_classes=3, **SMALL)
    heads = model.head_logits(IMAGES)
    assert len(heads) == 2 and not np.allclose(heads[0], heads[1])
    np.testing.assert_allclose(model(IMAGES), (heads[0] + heads[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"pool": "mean"}, {"pool": "mean", "num_registers": 3}, {"num_registers": 2}, {"distilled": True}])
def test_the_pooled_features_are_what_a_model_without_classes_gives(fields):
    model = create_model("vit_tiny_patch16", num_classes=0, **SMALL, **fields)
    features = model.features(IMAGES)
    assert len(features.class_tokens) == model.config.num_class_tokens
    np.testing.assert_allclose(model.pool(features), model(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"scan_blocks": True}, {"remat": "full"}, {"dtype": "bfloat16", "remat": "dots", "scan_blocks": True}])
def test_features_run_the_blocks_as_the_config_says(options):
    model = create_model("vit_tiny_patch16", num_classes=0, **(SMALL | {"depth": 12, "image_size": 14}), **options)
    graphdef, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state, copy=True).features(x))(state, IMAGES)
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert ("scan" in names) == ("scan_blocks" in options)
    assert ("remat" in str(jaxpr) or "checkpoint" in str(jaxpr)) == ("remat" in options)


def test_features_drop_paths_in_training_only():
    model = create_model("vit_tiny_patch16", num_classes=0, drop_path_rate=0.9, **SMALL)
    with pytest.raises(ValueError, match="rngs"):
        model.features(IMAGES, train=True)
    evaluated, trained = model.features(IMAGES), model.features(IMAGES, train=True, rngs=nnx.Rngs(dropout=1))
    np.testing.assert_array_equal(evaluated[0], trained[0])  # the first block drops no path
    assert np.abs(evaluated[-1] - trained[-1]).max() > 1e-3

"""Networks without published code against recordings of their equations: path ensembles,
DependencyViT, DCAL.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab.losses import uncertainty_weighted
from vitlab.models.registry import create_model, model_config
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

GATE = 1e-4  # largest deviation / standard deviation of the recorded outputs, as specs of these recordings say
VIT = {"patch_size": "patch_size", "embed_dim": "dim", "depth": "depth", "num_heads": "num_heads", "num_classes": "num_classes"}


def vit_of(name, meta, **fields):
    kwargs = meta["kwargs"]
    return create_model(name, image_size=size_of(meta), **{ours: kwargs[theirs] for theirs, ours in VIT.items()}, **fields)


def size_of(meta):
    size = meta["kwargs"]["img_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def images_of(meta, results):
    return jnp.asarray(results.get("input/images", golden.image(2, *size_of(meta))).transpose(0, 2, 3, 1))


def same(actual, expected):
    assert np.abs(np.asarray(actual) - expected).max() <= GATE * expected.std()


@pytest.mark.goldens("analysis_path_ensemble")
def test_path_ensembles_agree_with_the_algebra(golden_file):
    meta, state, results = golden.load(golden_file)
    model = vit_of("path_ensemble_deit_tiny", meta)
    load_weights(model, state)
    images, count = images_of(meta, results), 2 * meta["kwargs"]["depth"] + 1
    same(jax.jit(model.prefix_logits)(images), results["logits_prefix"])
    scaled = vit_of("path_ensemble_deit_tiny", meta, ensemble_scale=True)
    load_weights(scaled, state, strict=False)
    components = [scaled.embed_component, *(c for block in scaled.blocks for c in (block.attn_component, block.mlp_component))]

    graphdef = nnx.graphdef(scaled)
    forward = jax.jit(lambda state: nnx.merge(graphdef, state, copy=True)(images))

    def logits(scales):
        for component, scale in zip(components, scales, strict=True):
            component.scale[...] = jnp.asarray(scale)
        return forward(nnx.state(scaled))

    ones = np.ones((count, model.config.dim), np.float32)
    same(logits(ones), results["logits"])
    same(logits(results["input/lambda"]), results["logits_lambda"])
    for i, expected in enumerate(results["logits_without"]):
        same(logits(np.where(np.arange(count)[:, None] == i, np.float32(0), ones)), expected)
    dropped = vit_of("path_ensemble_deit_tiny", meta, dropped=(2, 3))
    load_weights(dropped, state)
    same(dropped(images), np.asarray(logits(np.where(np.isin(np.arange(count), (2, 3))[:, None], np.float32(0), ones))))


@pytest.mark.goldens("tune_dependencyvit")
def test_dependencyvit_agrees_with_the_unofficial_file(golden_file):
    meta, state, results = golden.load(golden_file)
    kwargs, sizes = meta["kwargs"], [results[f"mask{i}"].shape[1] for i in range(meta["kwargs"]["depth"])]
    named = kwargs["prune_after_blocks"] or ()
    first = (
        1 if named and (named[0] == len(sizes) or (named[0] and sizes[named[0]] < sizes[named[0] - 1])) else 0
    )  # number of the first block
    model = create_model(
        "dependencyvit_tiny",
        image_size=(8, 8 * kwargs["tokens"]),
        patch_size=8,
        dim=kwargs["dim"],
        num_heads=kwargs["heads"],
        depth=kwargs["depth"],
        num_classes=results["logits"].shape[1],
        prune_ratio=float(kwargs["prune_ratio"] or 0),
        prune_at=tuple(block - first for block in named),
    )
    report = load_weights(model, state, strict=False)
    assert not report.unexpected and not report.mismatched
    tokens = jnp.asarray(results["input/tokens"])
    _, mean = jax.jit(lambda x: model.encode(x))(tokens)
    same(model.head(mean), results["logits"])
    x = model.blocks[0].norm1(tokens)
    _, message, weights = model.blocks[0].attn(x, jnp.ones(tokens.shape[:2]))
    same(message, results["message0"])
    same(weights.sum(1), results["mask0"])


@pytest.mark.goldens("tune_dcal")
def test_dcal_agrees_with_the_equations(golden_file):
    meta, state, results = golden.load(golden_file)
    model = vit_of("dcal_deit_tiny", meta, query_share=meta["R"])
    report = load_weights(model, state, strict=False)
    assert not report.unexpected and not report.mismatched
    images = images_of(meta, results)
    kept, rollout = jax.jit(lambda x: model.streams(x))(images)
    same(rollout[:, 0, 1:], results["rollout"])
    places = model.selected(rollout)
    np.testing.assert_array_equal(places, results["selected"])
    same(model.glca(kept[-1], places), results["glca"])
    same(model.head_logits(images)[0], results["sa_logits"])
    same(jax.jit(lambda x: model.pair_logits(x))(images), results["pwca_logits"])
    loss = uncertainty_weighted(jnp.asarray(results["input/losses"]), jnp.asarray(results["input/w"]))
    np.testing.assert_allclose(loss, results["loss"], rtol=1e-5)


def test_an_ensemble_of_all_paths_is_deit():
    fields = {"num_classes": 5, "image_size": 32, "patch_size": 8, "depth": 2, "dim": 16, "num_heads": 2}
    model, deit = create_model("path_ensemble_deit_tiny", **fields), create_model("deit_tiny_patch16", **fields)
    load_weights(deit, to_foreign(model))
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), deit(images), atol=1e-5)  # float32 sums in another order


def test_a_component_that_there_is_not_cannot_be_dropped():
    with pytest.raises(ValueError, match="components 0 to 24"):
        model_config("path_ensemble_deit_tiny", dropped=(25,))

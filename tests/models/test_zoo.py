"""Every family of the zoo keeps the same contract; a new model is tested by existing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.conftest import apply, small
from vitlab.analysis.counts import abstract_model, count_macs, count_params
from vitlab.models.registry import family_of, list_models, model_config

SIZE = 64  # pixels, enough for every family's smallest map


def images(batch=2, height=SIZE, width=SIZE, channels=3):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, height, width, channels)), jnp.float32)


@pytest.mark.parametrize("name", list_models())
def test_parameters_equal_the_published_count(name):
    published = family_of(name).published[name]
    count = count_params(abstract_model(name))
    if published.params is not None:
        assert count == published.params
    elif published.params_m is not None:
        digits = 0 if published.params_m.is_integer() else len(str(published.params_m).partition(".")[2])
        assert round(count / 1e6, digits) == published.params_m
    else:
        assert published.source, "a variant without a published number says why"


@pytest.mark.parametrize("name", [n for n in list_models() if (family_of(n).published[n].gmacs or 99) < 20])
def test_macs_are_within_2_percent_of_the_published(name):
    gmacs = count_macs(abstract_model(name)) / 1e9
    assert gmacs == pytest.approx(family_of(name).published[name].gmacs, rel=0.02)


def test_every_variant_is_published_or_says_why():
    for name in list_models():
        published = family_of(name).published[name]
        assert published.source, name


def test_logits_have_the_shape_and_are_finite(representative):
    logits = apply(small(representative, image_size=SIZE), images())
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 0


def test_every_parameter_gets_a_gradient(representative):
    model = small(representative, image_size=SIZE, drop_path_rate=0.0)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    # At initialisation many a branch is near zero by design: give every parameter a value of its own.
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    params = jax.tree.unflatten(tree, [p + jnp.asarray(0.1 * rng.standard_normal(p.shape), p.dtype) for p in leaves])

    def loss(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.sum(jnp.sin(model(images(), train=True, rngs=nnx.Rngs(dropout=0))) ** 2)

    grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    dead = [".".join(map(str, path)) for path, g in grads if not (np.isfinite(g[...]).all() and np.abs(g[...]).max() > 0)]
    assert not dead


def test_features_keep_their_contract(representative):
    model = small(representative, image_size=SIZE)
    maps = jax.eval_shape(lambda: model.features(images()))
    assert len(maps) == len(model.feature_info)
    for fmap, info in zip(maps, model.feature_info, strict=True):
        assert fmap.shape == (2, SIZE // info.stride, SIZE // info.stride, info.dim)


def test_without_classes_gives_the_pooled_features(representative):
    model = small(representative, image_size=SIZE, num_classes=0)
    out = jax.eval_shape(lambda: model(images()))
    assert out.ndim == 2 and out.shape[0] == 2
    assert out.shape[1] == jax.eval_shape(lambda: small(representative, image_size=SIZE)(images())).shape[1] or out.shape[1] > 10


def test_takes_a_rectangular_image_of_another_size_or_refuses_with_the_rule(representative):
    model = small(representative, image_size=SIZE)
    try:
        out = apply(model, images(height=96, width=128))
    except ValueError as error:
        assert "must" in str(error)
    else:
        assert out.shape == (2, 10) and np.isfinite(out).all()


def test_takes_other_channels(representative):
    model = small(representative, image_size=SIZE, in_channels=1)
    assert len(model.preprocessing.mean) == 1
    assert apply(model, images(channels=1)).shape == (2, 10)


def test_bfloat16_follows_float32(representative):
    x = images()
    full = apply(small(representative, image_size=SIZE), x)
    half = apply(small(representative, image_size=SIZE, dtype="bfloat16"), x)
    # bfloat16 has 8 bits: 2^-8 relative an operation, a few dozen operations deep.
    assert np.abs(half - full).max() < 0.15 * np.abs(full).max() + 0.02


def test_parameters_stay_float32_in_bfloat16(representative):
    state = nnx.state(abstract_model(representative, dtype="bfloat16"), nnx.Param)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_drop_path_needs_random_numbers_and_is_off_in_evaluation(representative):
    model = small(representative, image_size=SIZE, drop_path_rate=0.5)
    x = images()
    assert np.array_equal(apply(model, x), apply(model, x))
    with pytest.raises(ValueError, match="rngs"):
        apply(model, x, train=True)


def test_remakes_itself_from_its_config(representative):
    config = model_config(representative)
    assert dataclasses.replace(config) == config


def test_unknown_names_and_fields_are_refused_with_near_misses():
    with pytest.raises(ValueError, match="swin_tiny"):
        small("swin_tny")
    with pytest.raises(ValueError, match="did you mean window_size"):
        small("swin_tiny", window_sise=7)

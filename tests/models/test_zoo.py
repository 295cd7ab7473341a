"""Every family of the zoo keeps one contract; a new model is tested by existing."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.conftest import apply, size_of, small
from vitlab.analysis.counts import count_macs, count_params
from vitlab.models.registry import abstract_model, family_of, list_models, model_config

# Parameters that the logits do not depend on, as in the authors' networks. In the last block the
# class token does not depend on the convolution over the patches, nor on the biases of the patches'
# queries. The predictor of a mask has a loss of its own, and an early exit has none here. A norm
# cancels a shift before it.
UNFELT = {
    "dynperceiver_mbv3_075_t128": ("head.cnn",),
    "agent_deit_tiny": tuple(f"blocks.1.attn.{name}" for name in ("dwc", "na_bias", "ha_bias", "wa_bias")),
    "inline_deit_tiny": ("blocks.1.attn.residual",),
    "sparsifiner_small": tuple(f"blocks.{block}.attn.mask_predictor" for block in (0, 1)),
    "terminator_cifar100": tuple(
        f"blocks.{block}.{name}.bias"
        for block in range(5)
        for name in (
            *(f"locals.{branch}{part}" for branch in range(4) for part in ("", ".channel_mixer")),
            *("channel_mixer_mlp", "bottleneck_layer", "fast_rgu.fast_linear_y", "slow_rgu.fast_linear_y"),
        )
    ),
    "shvit_s1": tuple(f"stages.{stage}.blocks.{block}.mixer.pre_norm.bias" for stage in (1, 2) for block in (0, 1)),
}


def images(size, *, width=None, channels=3):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((2, size, width or size, channels)), jnp.float32)


@functools.lru_cache(maxsize=4)
def tiny(name, **fields):
    return small(name, **({"image_size": size_of(name)} | fields))


def trace(model, x, **options):
    """Returns the jaxpr of the functional form."""
    graphdef, state = nnx.split(model)
    return jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state, copy=True)(x, **options))(state, x).jaxpr


@functools.lru_cache(maxsize=1)
def float32_outputs(name):
    """Returns features and logits, compiled together, so that shared parts are compiled once."""
    graphdef, state = nnx.split(tiny(name))

    def both(state, x):
        model = nnx.merge(graphdef, state, copy=True)
        return model.features(x), model(x)

    return jax.tree.map(np.asarray, jax.jit(both)(state, images(size_of(name))))


def float32_logits(name):
    return float32_outputs(name)[1]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", list_models())
def test_parameters_and_macs_are_the_published(name):
    published = family_of(name).published[name]
    count, macs = counted(name, of_macs=published.gmacs is not None and published.gmacs < 10)  # the larger ones are slower to trace
    if published.params is not None:
        assert count == published.params
    elif published.params_m is not None:
        digits = 0 if published.params_m.is_integer() else len(str(published.params_m).partition(".")[2])
        assert round(count / 1e6, digits) == published.params_m
    if macs is not None:
        assert macs / 1e9 == pytest.approx(published.gmacs, rel=0.02)


def counted(name, *, of_macs):
    """Returns parameters and multiply-accumulates; the blocks of a plain trunk are alike, so that
    one and two of them tell.
    """
    depth = getattr(model_config(name), "depth", 0)
    if family_of(name).model.__name__ != "ViT" or depth < 3:
        model = abstract_model(name)
        return count_params(model), count_macs(model) if of_macs else None
    one, two = (abstract_model(name, depth=d) for d in (1, 2))
    counts = [[count(m) for m in (one, two)] for count in (count_params, *[count_macs] * of_macs)]
    whole = [a + (depth - 1) * (b - a) for a, b in counts]
    return whole[0], whole[1] if of_macs else None


def test_every_variant_is_published_or_says_why():
    for name in list_models():
        published = family_of(name).published[name]
        assert published.source, name


def test_logits_have_the_shape_and_are_finite(representative):
    logits = float32_logits(representative)
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 0


def test_every_parameter_gets_a_gradient(representative):
    model = tiny(representative, drop_path_rate=0.0)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    # Many branches start near zero by design, so every parameter gets another value.
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    params = jax.tree.unflatten(tree, [np.asarray(p) + 0.1 * rng.standard_normal(p.shape, np.float32) for p in leaves])

    def loss(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.sum(jnp.sin(model(images(size_of(representative)), train=True, rngs=nnx.Rngs(dropout=0))) ** 2)

    grads = jax.tree.map(np.asarray, nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    flat = jax.tree_util.tree_leaves_with_path(grads)
    dead = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, g in flat if not (np.isfinite(g).all() and np.abs(g).max() > 0)
    ]
    assert not [name for name in dead if not name.startswith(UNFELT.get(representative, ()))]


def test_features_have_the_strides_and_widths_of_feature_info_and_are_normalised_as_it_says(representative):
    info, size = tiny(representative).feature_info, size_of(representative)
    maps, _ = float32_outputs(representative)
    assert [fmap.shape for fmap in maps] == [(2, size // i.stride, size // i.stride, i.dim) for i in info]
    for fmap, i in zip(maps, info, strict=True):
        # After a norm, whose scale is 1 and bias 0 in a new model, each position has mean 0 and
        # variance 1 over its channels. Branches may add little to a norm's output in a new model:
        # their means are 1e-3, while those of float32 rounding are below 1e-6.
        mean, variance = fmap.mean(-1), fmap.var(-1)
        assert (np.abs(mean).max() < 1e-5 and np.abs(variance - 1).max() < 0.05) == i.normalised


def test_without_classes_gives_the_pooled_features(representative):
    model = tiny(representative, num_classes=0)
    out = jax.eval_shape(lambda: model(images(size_of(representative))))
    assert out.ndim == 2 and out.shape[0] == 2 and out.shape[1] > 10


def test_takes_a_rectangular_image_of_another_size_or_refuses_with_the_rule(representative):
    model = tiny(representative)
    try:
        out = jax.eval_shape(lambda: model(images(96, width=128)))
    except ValueError as error:
        assert "must" in str(error)
    else:
        assert out.shape == (2, 10)


def test_takes_other_channels(representative):
    model = tiny(representative, in_channels=1)
    assert len(model.preprocessing.mean) == 1
    assert jax.eval_shape(lambda: model(images(size_of(representative), channels=1))).shape == (2, 10)


def test_bfloat16_follows_float32(representative):
    full = float32_logits(representative)
    half = apply(tiny(representative, dtype="bfloat16"), images(size_of(representative)))
    # bfloat16 rounds by 2^-8 relative per operation, a few dozen operations deep.
    assert np.abs(half - full).max() < 0.15 * np.abs(full).max() + 0.02


def test_parameters_stay_float32_in_bfloat16(representative):
    state = nnx.state(abstract_model(representative, dtype="bfloat16"), nnx.Param)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_drop_path_needs_random_numbers_or_is_refused(representative):
    with pytest.raises(ValueError, match=r"rngs|no drop path"):
        trace(tiny(representative, drop_path_rate=0.5), images(size_of(representative)), train=True)


def test_remat_recomputes_the_blocks(representative):
    def primitives(**fields):
        jaxpr = trace(tiny(representative, **fields), images(size_of(representative)))
        return sum(eqn.primitive.name in ("remat2", "checkpoint") for eqn in jaxpr.eqns)

    assert primitives(remat="full") >= len(tiny(representative).feature_info) > primitives()


def test_blocks_that_are_alike_run_as_a_loop(representative):
    if representative.startswith(("terminator", "morpmamba")):
        pytest.skip("each block is wider than the one before, or there is one: no two are alike")
    # The smallest variants of these families have no two blocks alike.
    larger = {"fmvit_tiny": "fmvit_large", "halonet26t": "halonet50ts"}
    name, size = larger.get(representative, representative), size_of(representative)
    model, x = abstract_model(name, image_size=size, scan_blocks=True), jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    assert "scan" in {eqn.primitive.name for eqn in trace(model, x).eqns}


def test_the_config_survives_json(representative):
    config = model_config(representative)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "preprocessing"}
    again = model_config(representative, **json.loads(json.dumps(fields)))
    assert again == config and [type(getattr(again, name)) for name in fields] == [type(value) for value in fields.values()]


def test_unknown_names_and_fields_are_refused_with_near_misses():
    with pytest.raises(ValueError, match="swin_tiny"):
        small("swin_tny")
    with pytest.raises(ValueError, match="did you mean window_size"):
        small("swin_tiny", window_sise=7)

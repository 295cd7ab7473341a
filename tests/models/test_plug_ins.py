"""Plug-in modules after the blocks of any trunk that has maps."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.conftest import REPRESENTATIVES, apply, fewer_parts, size_of
from vitlab import create_model
from vitlab.layers.plug_ins import PLUG_INS
from vitlab.models.plug_in import block_maps
from vitlab.models.registry import model_config
from vitlab.weights.load import load_weights, parameters
from vitlab.weights.save import to_foreign

# Families whose blocks are run on tokens, on several arrays, or on their own.
WITHOUT_MAPS = {
    *("AgentDeiT", "CrossViT", "DCAL", "DependencyViT", "DynPerceiver", "EViT", "ILLaMA", "InLineDeiT", "PathEnsemble"),
    *("MorpMamba", "PVT", "Sparsifiner", "Terminator", "Vim", "ViT"),
}


def tiny(**fields):
    fields = {"depths": (1, 2), "dims": (16, 32), "num_heads": (2, 2), "mixers": "pooling"} | fields
    return create_model("metaformer_nano", num_classes=5, image_size=32, drop_path_rate=0.0, **fields)


def images():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)


def plugged(model):
    return [".".join(map(str, path)) for path, module in nnx.iter_modules(model) if hasattr(module, "plugin")]


@pytest.mark.parametrize("name", sorted(PLUG_INS))
def test_every_plug_in_keeps_the_contract_and_a_gradient_reaches_all_of_it(name):
    parameters = inspect.signature(getattr(PLUG_INS[name], "__init__", PLUG_INS[name])).parameters
    assert {"dtype", "rngs"} <= set(inspect.signature(PLUG_INS[name]).parameters) | set(parameters)
    module = PLUG_INS[name](16, rngs=nnx.Rngs(0))
    for _, part in nnx.iter_modules(module):
        if hasattr(part, "gamma"):
            part.gamma[...] = jnp.ones(1)  # at 0 nothing reaches the attention
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 7, 16)), jnp.float32)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(params, x):
        def loss(params):
            y = nnx.merge(graphdef, params, rest, copy=True)(x)
            return (y * jnp.arange(y.size).reshape(y.shape)).sum(), y

        return jax.grad(loss, has_aux=True)(params)

    grads, y = run(params, x)
    assert y.shape == x.shape and y.dtype == x.dtype
    largest = {}  # by the name without numbers: one of several parts may be cut off by a ReLU
    for path, grad in nnx.to_flat_state(grads):
        largest.setdefault(tuple(part for part in path if not isinstance(part, int)), []).append(float(np.abs(grad[...]).max()))
    assert all(max(values) > 0 and np.isfinite(values).all() for values in largest.values()), largest


def test_the_blocks_of_every_family_with_maps_are_found():
    without = set()
    for model, name in REPRESENTATIVES.items():
        config = model_config(name, image_size=size_of(name), num_classes=0, **fewer_parts(model_config(name), in_the_middle=1))
        found = block_maps(model, config)
        if not found:
            without.add(model.__name__)
        else:
            assert len(found) >= len(getattr(config, "depths", (1,))), name
    assert without == WITHOUT_MAPS


@pytest.mark.parametrize("fields", [{}, {"remat": "full", "scan_blocks": True}], ids=["plain", "loop"])
def test_a_plug_in_is_called_after_each_block_and_changes_nothing_of_the_trunk(fields):
    plain, model = tiny(), tiny(plugin="criss_cross", **fields)
    ours = parameters(model)
    assert plugged(model) == ["stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1"]
    for name, value in parameters(plain).items():
        np.testing.assert_array_equal(value[...], ours[name][...])
    out = apply(plain, images())
    np.testing.assert_allclose(apply(model, images()), out, rtol=1e-5, atol=1e-6)  # gamma is 0; sums of some ten terms round
    model.stages[1].blocks[1].plugin.gamma[...] = jnp.ones(1)
    assert np.abs(apply(model, images()) - out).max() > 1e-3


def test_training_moves_the_statistics_of_a_plug_in():
    model = tiny(plugin="ulsam", plugin_stages=(1,), plugin_fields={"num_splits": 2})
    assert plugged(model) == ["stages.1.blocks.0", "stages.1.blocks.1"]
    norm = model.stages[1].blocks[1].plugin.subspaces[1].bn_dws
    before = norm.mean[...]
    model(images(), train=False)
    np.testing.assert_array_equal(norm.mean[...], before)
    model(images(), train=True)
    assert not np.array_equal(norm.mean[...], before)


def test_a_plug_in_of_the_users_own_goes_in_too():
    model = tiny(plugin="tests/plugin/ownlab/parts.py:Gate", plugin_fields={"start": 0.5})
    assert float(model.stages[0].blocks[0].plugin.start[...][0]) == 0.5
    assert model(images()).shape == (2, 5)


def test_a_checkpoint_without_plug_ins_leaves_them_as_initialised_and_one_with_some_must_have_all():
    model, of_plain = tiny(plugin="ela"), to_foreign(tiny())
    report = load_weights(model, of_plain)
    assert len(report.new_plugin) == 9 and not report.misfits
    everything = to_foreign(model)
    assert not load_weights(model, everything).new_plugin
    del everything[next(name for name in everything if "plugin" in name)]
    with pytest.raises(ValueError, match="1 missing"):
        load_weights(model, everything)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"plugin": "elaa"}, "did you mean ela"),
        ({"plugin": "ela", "plugin_stages": (2,)}, r"plugin_stages=\(2,\) of MetaFormer must be from 0 to 1"),
        ({"plugin": "ela", "plugin_fields": {"kernel": 3}}, "did you mean kernel_size"),
        ({"plugin": "ulsam", "plugin_fields": {"num_splits": "many"}}, "must be int"),
        ({"plugin": "ulsam", "plugin_fields": {"num_splits": 3}}, "must be a multiple of num_splits=3"),
        ({"plugin_stages": (1,)}, "plugin must name the module"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny(**fields)


def test_a_family_that_works_on_tokens_refuses_plug_ins():
    with pytest.raises(ValueError, match='plugin="ela" of ViT must be None: the family has no blocks that make maps'):
        create_model("vit_tiny_patch16", image_size=32, depth=1, plugin="ela")

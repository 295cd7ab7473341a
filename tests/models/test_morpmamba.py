"""MorpMamba against what the authors' notebook computes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab.layers.initial import InitRngs
from vitlab.models.registry import abstract_model, create_model, model_config
from vitlab.weights.load import parameters

# Keras's numbers of the notebook's dense layers -> the layers here.
DENSE = ("attn.query", "attn.key", "attn.value", "attn.spatial_gate", "attn.spectral_gate", "recurrence.transition", "recurrence.update")
DENSE = (*DENSE, "fc", "head")
BRANCHES = ("spatial", "spectral")  # each has an erosion and a dilation, in this order


def numbered(name):
    """Keras's number of a name: it counts on over all layers that a process has made."""
    return int((re.search(r"_(\d+)$", name) or [0, 0])[1])


def values_of(recorded):
    """The recorded tensors, whose axes are in reverse, by the names here."""
    parts = [name.split("/") for name in recorded]
    dense = sorted({numbered(layer) for *_, layer, _ in parts if layer.startswith("dense")})
    groups = sorted({numbered(group) for *_, group, _, _ in parts if group.startswith("erosion")})
    values, filters = {}, {}
    for (*_, group, layer, leaf), value in zip(parts, recorded.values(), strict=True):
        if layer.startswith("depthwise_conv2d"):
            name = f"tokens.{BRANCHES[groups.index(numbered(group))]}_{group.split('_')[0]}.kernel"
            filters.setdefault(name, []).append((numbered(layer), value.T))
        elif layer.startswith("dense"):
            values[f"{DENSE[dense.index(numbered(layer))]}.{leaf}"] = value.T
        else:
            values[f"tokens.conv.{leaf}"] = value.T.reshape(value.T.shape[-2:]) if leaf == "kernel" else value
    ordered = {name: [value for _, value in sorted(found, key=lambda pair: pair[0])] for name, found in filters.items()}
    return values | {name: np.concatenate(found, 3) for name, found in ordered.items()}


@pytest.mark.goldens("morpmamba_")
def test_agrees_with_the_authors(golden_file):
    meta, state, recorded = golden.load(golden_file)
    kwargs = {"dim": "out_channels", "num_heads": "num_heads", "state_dim": "state_dim", "num_classes": "num_classes"}
    fields = {ours: meta["kwargs"][theirs] for ours, theirs in kwargs.items()}
    model = create_model(
        "morpmamba_houston",
        image_size=tuple(meta["image_size"]),
        in_channels=meta["channels"],
        kernel_size=meta["kwargs"]["kernel_size"],
        rngs=InitRngs(None),
        **fields,
    )
    targets, values = parameters(model), values_of(state)
    assert targets.keys() == values.keys() and sum(value.size for value in values.values()) == meta["n_params"]
    for name, value in values.items():
        assert targets[name].shape == value.shape, name
        targets[name].set_value(jnp.asarray(value))
    graphdef, params = nnx.split(model)
    x = golden.image(len(recorded["logits"]), *meta["image_size"], meta["channels"]).transpose(0, 2, 3, 1)

    @jax.jit
    def run(params, x):
        def both(x):
            model = nnx.merge(graphdef, params, copy=True)
            maps = model.features(x)
            return model.state(maps), (maps[0], jax.nn.softmax(model(x)))

        state, pull_back, rest = jax.vjp(both, x, has_aux=True)
        return state, rest, pull_back(jnp.asarray(golden.cotangent(*state.shape)))[0]

    last, (tokens, shares), grad = jax.tree.map(np.asarray, run(params, jnp.asarray(x)))
    found = {"logits": last, "features/2": tokens.reshape(recorded["features/2"].shape), "features/3": shares, "grad_input": grad}
    for name, value in found.items():
        gate = 1e-3 if name == "grad_input" else 2e-5  # both gates are those of tests/goldens/README.md
        assert np.abs(value - recorded[name]).max() <= gate * recorded[name].std(), name
    assert abs(np.linalg.norm(grad) / recorded["grad_input_norm"] - 1) <= 1e-3


def test_the_published_number_of_parameters_is_that_of_15_channels():
    model = abstract_model("morpmamba_houston", in_channels=15)
    assert sum(np.prod(value.shape) for value in parameters(model).values()) == 67_013


def test_what_cannot_work_is_refused_with_the_rule():
    with pytest.raises(ValueError, match="must be square"):
        model_config("morpmamba_houston", image_size=(4, 6))
    with pytest.raises(ValueError, match="must be odd"):
        model_config("morpmamba_houston", kernel_size=4)
    model = create_model("morpmamba_houston", in_channels=2, dim=8, state_dim=4, hidden=4)
    with pytest.raises(ValueError, match="needs random numbers"):
        model(jnp.zeros((1, 4, 4, 2)), train=True)

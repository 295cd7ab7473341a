"""Heads against recorded outputs and gradients of mmsegmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab.heads.fcn import FCN
from vitlab.heads.semantic_fpn import SemanticFPN
from vitlab.heads.upernet import UPerNet
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

CLASSES = {"UPerHead": UPerNet, "FPNHead": SemanticFPN, "FCNHead": FCN}
OPTIONS = {"channels": "dim", "pool_scales": "pool_sizes", "num_convs": "num_convs", "concat_input": "concat_input"}
GRAD_NORM = 1e-5  # relative; float32 rounding moves the norms by 2e-7, a ReLU within rounding of zero by more


def head_of(meta):
    """Returns the recorded head, and how many of the recorded maps it reads."""
    kwargs = meta["kwargs"]
    several = isinstance(kwargs["in_channels"], list)
    dims = kwargs["in_channels"] if several else [kwargs["in_channels"]] * (kwargs["in_index"] + 1)
    options = {ours: kwargs[theirs] for theirs, ours in OPTIONS.items() if theirs in kwargs}
    if meta["entrypoint"] == "FPNHead":
        options["neck_dim"] = None
    strides = kwargs.get("feature_strides", meta["strides"])[: len(dims)]
    head = CLASSES[meta["entrypoint"]](
        dims, strides, kwargs["num_classes"], dropout_rate=kwargs["dropout_ratio"], **options, rngs=nnx.Rngs(0)
    )
    return head, dims


def maps_of(meta, dims, batch):
    h, w = meta["image_size"]
    draws = [golden._rng(f"head_input/{i}") for i in range(len(dims))]
    shapes = [(batch, d, h // s, w // s) for d, s in zip(dims, meta["strides"], strict=False)]
    return tuple(jnp.asarray(r.standard_normal(s).astype(np.float32).transpose(0, 2, 3, 1)) for r, s in zip(draws, shapes, strict=True))


@pytest.mark.goldens("head_")
def test_agrees_with_mmsegmentation(golden_file):
    meta, state, recorded = golden.load(golden_file)
    head, dims = head_of(meta)
    load_weights(head, state)
    maps = maps_of(meta, dims, len(recorded["logits"]))
    graphdef, params = nnx.split(head)

    @jax.jit
    def forward_and_pull_back(params, maps):
        logits, pull_back = jax.vjp(lambda maps: nnx.merge(graphdef, params, copy=True)(maps, train=False), maps)
        return logits, pull_back(jnp.ones_like(logits))[0]

    logits, grads = jax.tree.map(np.asarray, forward_and_pull_back(params, maps))
    off = np.abs(logits.transpose(0, 3, 1, 2) - recorded["logits"]).max() / recorded["logits"].std()
    assert off <= max(2e-5, 10 * meta["fp32_noise"])  # the gate of tests/goldens/README.md
    norms = np.zeros(len(recorded["grad_norms"]))
    norms[: len(grads)] = [np.linalg.norm(grad.astype(np.float64)) for grad in grads]
    np.testing.assert_allclose(norms, recorded["grad_norms"], rtol=GRAD_NORM)


@pytest.mark.goldens("head_")
def test_leaves_in_the_names_that_it_came_with(golden_file):
    meta, state, _ = golden.load(golden_file)
    head, _ = head_of(meta)
    load_weights(head, state)
    back = to_foreign(head)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)

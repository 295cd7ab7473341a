"""The zoo against recorded outputs and input gradients of the authors' code (tests/goldens)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab import create_model, load_weights

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"
# Golden file -> the model here and the fields it was recorded with.
CASES: dict[str, tuple[str, dict]] = {
    "focalnet_tiny_srf": ("focalnet_tiny_srf", {}),
    "davit_tiny": ("davit_tiny", {}),
    "litv2_s": ("litv2_small", {}),
    "svit_s": ("svit_small", {}),
    "swin_tiny_patch4_window7_224": ("swin_tiny", {}),
    "van_b0": ("van_b0", {}),
    "vit_tiny_patch16_224": ("vit_tiny_patch16", {}),
}


def errors(file: str, model=None) -> tuple[float, float, dict]:
    """Largest deviations of logits and input gradient, in standard deviations of the recorded ones."""
    meta, state, recorded = golden.load(GOLDENS / f"{file}.npz")
    if model is None:
        name, fields = CASES[file]
        model = create_model(name, num_classes=meta["num_classes"], image_size=tuple(meta["image_size"]), **fields)
    load_weights(model, state)
    graphdef, params = nnx.split(model)
    x = jnp.asarray(golden.image(2, *meta["image_size"]).transpose(0, 2, 3, 1))
    cotangent = golden.cotangent(2, meta["num_classes"])

    @jax.jit
    def forward_and_pull_back(params, x):
        logits, pull_back = jax.vjp(lambda x: nnx.merge(graphdef, params, copy=True)(x), x)
        return logits, pull_back(jnp.asarray(cotangent))[0]

    logits, grad = jax.tree.map(np.asarray, forward_and_pull_back(params, x))
    grad = grad.transpose(0, 3, 1, 2)[:, :, ::8, ::8]
    off = [np.abs(a - b).max() / b.std() for a, b in ((logits, recorded["logits"]), (grad, recorded["grad_input"]))]
    return off[0], off[1], meta


@pytest.mark.parametrize("file", sorted(CASES))
def test_agrees_with_the_authors(file):
    logits, grad, meta = errors(file)
    assert logits <= max(2e-5, 10 * meta["fp32_noise"])  # the gate of tests/goldens/README.md
    assert grad <= max(1e-3, 500 * meta["fp32_noise"])


def tanh_gelu(model):
    for stage in model.layers:
        for block in stage.blocks:
            block.mlp.activation = jax.nn.gelu


def small_epsilon(model):
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LayerNorm):
            module.epsilon = 1e-6


@pytest.mark.parametrize("mistake", [tanh_gelu, small_epsilon])
def test_the_gate_sees_a_wrong(mistake):
    model = create_model("swin_tiny")
    mistake(model)
    logits, _, _ = errors("swin_tiny_patch4_window7_224", model)
    assert logits > 2e-5


def test_the_gate_sees_a_transposed_bias_table(monkeypatch):
    from vitlab.weights.names import swin
    from vitlab.weights.rules import Rule, table_2d

    wrong = Rule(swin.RULES[1].pattern, swin.RULES[1].replacement, lambda t: table_2d(t).swapaxes(1, 2))
    monkeypatch.setattr(swin, "RULES", (swin.RULES[0], wrong))
    logits, _, _ = errors("swin_tiny_patch4_window7_224")
    assert logits > 2e-5

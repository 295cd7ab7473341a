"""Additions of a model to the loss of its logits: exits, and terms of its own, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab import create_model
from vitlab.config import Experiment, LossConfig, ModelConfig
from vitlab.layers.head_gates import HeadGates
from vitlab.models.registry import Preprocessing
from vitlab.models.training import Exit, Training
from vitlab.tasks import setting_of
from vitlab.tasks.classification import loss, mean_of
from vitlab.tasks.registry import named_task

RNG = np.random.default_rng(0)
B, K = 4, 3
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # sums of some float32 numbers of order one


def setting():
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(8, 8))
    experiment = Experiment(model=ModelConfig(), loss=LossConfig(label_smoothing=0.0))
    return setting_of(experiment, named_task("classification").options(), preprocessing, num_classes=K)


def images(size):
    return jnp.asarray(RNG.standard_normal((2, size, size, 3)), jnp.float32)


def outputs_of(model, x):
    """The training outputs under jit, and the logits of the heads in training."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        outputs = nnx.merge(graphdef, state, copy=True).training_outputs(x, rngs=None)
        return outputs, nnx.merge(graphdef, state, copy=True).head_logits(x, train=True)

    return run(state, x)


def test_exits_learn_the_labels_and_what_the_last_one_says_and_terms_are_added():
    logits = RNG.standard_normal((2, B, K)).astype(np.float32)
    target = np.eye(K, dtype=np.float32)[[0, 2, 1, 0]]
    term = np.arange(B, dtype=np.float32)
    early = Exit(logits=jnp.asarray(logits[0]), weight=0.5, distillation=0.25)
    outputs = Training(heads=(jnp.asarray(logits[1]),), exits=(early,), terms={"own": jnp.asarray(term)})
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropies = -(log * target).sum(-1)
    divergence = (np.exp(log[1]) * (log[1] - log[0])).sum(-1)
    expected = entropies[1] + 0.5 * entropies[0] + 0.25 * divergence + term
    np.testing.assert_allclose(loss(outputs, {"target": jnp.asarray(target)}, setting())["loss"], expected, **ROUNDING)
    np.testing.assert_array_equal(mean_of(outputs), logits[1])

    def distilled(last):
        return loss(Training(heads=(last,), exits=(early,)), {"target": jnp.asarray(target)}, setting())["loss"].sum()

    alone = jax.grad(lambda last: loss((last,), {"target": jnp.asarray(target)}, setting())["loss"].sum())
    np.testing.assert_allclose(jax.grad(distilled)(outputs.heads[0]), alone(outputs.heads[0]), **ROUNDING)  # the last exit is no pupil


def test_the_imbalance_of_heads_is_that_of_the_paper_and_least_where_all_are_used_alike():
    gates = HeadGates(6, num_heads=5, shared=1, routed=2, rngs=nnx.Rngs(0))
    gates.wg.kernel[...] = jnp.asarray(RNG.standard_normal((6, 4)), jnp.float32)
    x = RNG.standard_normal((2, 7, 6)).astype(np.float32)
    weights = np.exp(x @ np.asarray(gates.wg.kernel[...]))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(-1, 4)
    chosen = (weights.argsort(-1).argsort(-1) >= 2).astype(float)
    np.testing.assert_allclose(gates.imbalance(jnp.asarray(x)), (weights.mean(0) * chosen.mean(0)).mean() * 16, **ROUNDING)
    gates.wg.kernel[...] = jnp.zeros((6, 4))
    np.testing.assert_allclose(gates.imbalance(jnp.asarray(x)), 2, **ROUNDING)


def test_a_mixture_of_heads_has_its_balance_in_the_loss():
    shape = {"dims": (8, 16), "depths": (1, 2), "num_heads": (2, 4), "mlp_ratios": (2.0, 2.0), "pool_ratios": (2, 1)}
    heads = {"shared_heads": (2, 1), "routed_heads": (0, 2), "drop_path_rate": 0.0, "scan_blocks": True}
    model = create_model("moh_transnext_small_80", image_size=16, num_classes=K, **shape, **heads)
    outputs, (logits,) = outputs_of(model, images(16))
    np.testing.assert_allclose(outputs.heads[0], logits, **ROUNDING)
    assert outputs.terms["balance"].shape == (2,)
    np.testing.assert_allclose(outputs.terms["balance"], 0.01 * 2, rtol=0.2)  # new gates use all heads nearly alike
    plain = create_model("transnext_micro", image_size=16, num_classes=K, **shape)
    assert not jax.eval_shape(lambda x: plain.training_outputs(x, rngs=nnx.Rngs(dropout=0)), images(16)).terms


def test_terminator_adds_the_distances_between_its_kernels():
    shape = {"depths": (1,) * 5, "slow_depth": 1, "kernel_sizes": (3,) * 4, "hidden": 4, "dropout_rate": 0.0}
    model = create_model("terminator_cifar10", num_classes=K, image_size=8, **shape)
    sums = [np.asarray(block.slow_net_g()).sum(-1) for block in model.blocks]
    expected = sum(((a - b) ** 2).mean() for i, a in enumerate(sums) for b in sums[:i])
    outputs, _ = outputs_of(model, images(8))
    np.testing.assert_allclose(outputs.terms["kernels"], np.full(2, expected), rtol=1e-4)  # sums of up to 288 numbers
    assert expected > 0


@pytest.mark.usefixtures("unchecked_shapes")
def test_dynamic_perceiver_trains_all_of_its_exits():
    model = create_model("dynperceiver_mbv3_05_t128", num_classes=K, image_size=64, num_latents=16, depths=(1,) * 4)
    graphdef, state = nnx.split(model)
    outputs = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state, copy=True).training_outputs(x, rngs=None), state, images(64))
    assert [(x.logits.shape, x.weight, x.distillation) for x in outputs.exits] == [((2, K), w, 0.5) for w in (0.5, 0.5, 1.0)]
    assert [x.shape for x in outputs.heads] == [(2, K)]


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """Disables the check of argument shapes, which doubles the time to trace."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

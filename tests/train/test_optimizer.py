import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.config import OptimizerConfig
from vitlab.models.registry import create_model
from vitlab.train.functional import functional
from vitlab.train.losses import cross_entropy
from vitlab.train.optimizer import decay_mask, make_optimizer
from vitlab.train.paths import leaf_names
from vitlab.train.schedule import warmup_cosine


def test_the_schedule_begins_at_zero_peaks_after_the_warm_up_and_ends_where_it_should():
    schedule = warmup_cosine(peak_lr=1e-2, end_lr=1e-4, warmup_steps=10, total_steps=110)
    expected = {0: 0, 5: 5e-3, 10: 1e-2, 60: (1e-2 + 1e-4) / 2, 110: 1e-4, 200: 1e-4}
    np.testing.assert_allclose([schedule(s) for s in expected], list(expected.values()), rtol=1e-5, atol=1e-9)
    assert warmup_cosine(peak_lr=1e-2, end_lr=0.0, warmup_steps=0, total_steps=5)(0) == np.float32(1e-2)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("deit_tiny_distilled_patch16", {"dim": 16, "depth": 1, "num_heads": 2, "num_registers": 2}),
        ("swin_tiny", {"dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}),
    ],
)
def test_only_matrices_and_kernels_decay(name, fields):
    params = jax.eval_shape(lambda: functional(create_model(name, num_classes=5, **fields))[1]["params"])
    mask = dict(zip(leaf_names(params), jax.tree.leaves(decay_mask(params)), strict=True))
    assert all(decays == name.endswith("/kernel") for name, decays in mask.items())
    assert any(mask.values()) and not all(mask.values())


def test_tokens_tables_and_positions_of_other_names_do_not_decay():
    shape = jnp.zeros((2, 2))
    tree = {"relative_position_bias_table": shape, "absolute_pos_embed": shape, "mask_token": shape, "q": {"bias": shape}, "kernel": shape}
    assert [name for name, decays in zip(leaf_names(tree), jax.tree.leaves(decay_mask(tree)), strict=True) if decays] == ["kernel"]


def test_a_parameter_without_gradient_shrinks_by_learning_rate_times_decay():
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), lambda step: jnp.float32(0.5))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_clipping_bounds_the_global_norm():
    import optax

    clipped = make_optimizer(OptimizerConfig(clip_norm=1.0), lambda step: jnp.float32(1))
    params = {"kernel": jnp.ones((2, 2))}
    _, state = clipped.update({"kernel": jnp.full((2, 2), 100.0)}, clipped.init(params), params)
    mu = optax.tree_utils.tree_get(state, "mu")["kernel"]
    np.testing.assert_allclose(mu, (1 - 0.9) * 0.5, rtol=1e-5)  # gradient of norm 1 over four equal entries


def test_label_smoothing_spreads_its_share_over_all_classes():
    logits, labels = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([1])
    log_probs = np.log(np.exp([2.0, 0, -1]) / np.exp([2.0, 0, -1]).sum())
    expected = -(0.7 * log_probs[1] + 0.3 * log_probs.mean())
    np.testing.assert_allclose(cross_entropy(logits, labels, label_smoothing=0.3), [expected], rtol=1e-6)

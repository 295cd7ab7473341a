"""Any mixer in any stage of the trunk."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models.conftest import apply
from vitlab import create_model
from vitlab.analysis.counts import macs_of
from vitlab.mixers import MIXERS


def tiny(**fields):
    fields = {"depths": (1, 1), "dims": (16, 32), "num_heads": (2, 2), "mixers": "window"} | fields
    return create_model("metaformer_nano", num_classes=5, image_size=64, drop_path_rate=0.0, **fields)


def images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((4, 64, 64, 3)), jnp.float32)


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_mixer_builds_runs_and_trains_one_step(name):
    graphdef, params, rest = nnx.split(tiny(mixers=name), nnx.Param, ...)
    labels = jnp.arange(4)

    def loss_of(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(images(), train=True, rngs=nnx.Rngs(dropout=0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    losses = []
    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all() and losses[2] < losses[0]


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_mixer_keeps_the_contract(name):
    parameters = inspect.signature(MIXERS[name].__init__).parameters
    assert list(parameters)[1] == "dim" and {"num_heads", "dtype", "rngs"} <= set(parameters)
    mixer = MIXERS[name](16, num_heads=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    options = {"train": False} if "train" in inspect.signature(type(mixer).__call__).parameters else {}
    x = images()[:2, :14, :14, :1].repeat(16, -1)
    assert mixer(x, **options).shape == x.shape


def test_stages_have_the_mixers_they_name_and_the_fields_reach_them():
    model = tiny(mixers="window, global", mixer_fields={"window": {"window_size": 4}})
    names = [type(stage.blocks[0].mixer).__name__ for stage in model.stages]
    assert names == ["WindowAttention", "GlobalAttention"]
    assert model.stages[0].blocks[0].mixer.window_size == 4


@pytest.mark.parametrize("fields", [{"mlp": "conv"}, {"norm_placement": "res_post"}, {"layer_scale_init": 1e-2}, {"remat": "dots"}])
def test_the_trunk_has_its_options(fields):
    model = tiny(**fields)
    assert np.isfinite(apply(model, images(), train=True)).all()


def test_remat_changes_no_gradient_and_recomputes_what_it_says():
    def grad(remat):
        graphdef, state = nnx.split(tiny(remat=remat, mixers="global"))
        return jax.grad(lambda state: (nnx.merge(graphdef, state, copy=True)(images()) ** 2).sum()), state

    # The products of both passes; recomputation adds those of attention ("dots") or of all blocks
    # ("full").
    macs = {remat: macs_of(*grad(remat)) for remat in ("none", "dots", "full")}
    assert macs["none"] < macs["dots"] < macs["full"] < 4 / 3 * macs["none"]
    fn, state = grad("none")
    plain = jax.jit(fn)(state)
    for remat in ("dots", "full"):
        fn, _ = grad(remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), jax.jit(fn)(state), plain)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match=r"remat='some' must be one of 'none', 'full', 'dots'"):
        tiny(remat="some")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mixers": "window,globl"}, "did you mean global"),
        ({"mixers": ("window",) * 3}, "one mixer a stage"),
        ({"dims": (16,)}, "one entry a stage"),
        ({"mixer_fields": {"windw": {}}}, "did you mean window"),
        ({"mixer_fields": {"window": 3}}, "must be a group of arguments"),
        ({"mixer_fields": {"window": {"window_sise": 3}}}, "did you mean window_size"),
        ({"mixer_fields": {"window": {"num_heads": 3}}}, 'has no argument "num_heads"'),
        ({"mixer_fields": {"window": {"window_size": 0}}}, r"mixer_fields.window.window_size=0 must be in \[1, 1000\]"),
        ({"mixer_fields": {"window": {"window_size": "many"}}}, "mixer_fields.window.window_size='many' must be int"),
        ({"mixer_fields": {"hilo": {"alpha": 1.5}}}, r"mixer_fields.hilo.alpha=1.5 must be in \[0, 1\]"),
    ],
)
def test_impossible_trunks_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny(**fields)

"""Frozen groups: constant, without cost, and in evaluation mode."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.processes import run_on_four_devices
from tests.train.conftest import tiny_experiment
from vitlab.analysis.counts import macs_in
from vitlab.config import ConfigError, DistillationConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig
from vitlab.functional import freeze, functional
from vitlab.layers import BatchNorm, DropPath, Linear
from vitlab.models.registry import Preprocessing, create_model
from vitlab.runs.checkpoint import Checkpoints
from vitlab.runs.retention import Retention
from vitlab.train.groups import as_trained
from vitlab.train.periods import Periods
from vitlab.train.setup import make_step, set_up
from vitlab.tree import leaf_names

TRUNK = ("^(?!head) frozen", "^head")
TOLERANCE = 1e-6  # sums are taken in another order
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)),
    "label": jnp.arange(8, dtype=jnp.int32) % 3,
}


class Block(nnx.Module):
    """A linear map, a batch norm, and a path that is nearly always dropped."""

    def __init__(self, rngs):
        self.linear = Linear(16, 16, rngs=rngs)
        self.norm = BatchNorm(16, rngs=rngs)
        self.drop_path = DropPath(0.9)

    def __call__(self, x, *, train, rngs):
        return x + self.drop_path(self.norm(self.linear(x), train=train), train=train, rngs=rngs)


class Small(nnx.Module):
    """Blocks, Flax's dropout and batch norm, and a head."""

    def __init__(self, rngs):
        self.embed = Linear(64, 16, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(16, momentum=0.5, rngs=rngs)
        self.neck = nnx.List([nnx.Linear(16, 16, rngs=rngs), nnx.Dropout(0.9)])
        self.head = nnx.Linear(16, 3, rngs=rngs)
        self.preprocessing = Preprocessing(mean=(0.5,), std=(0.25,), image_size=(8, 8))

    def __call__(self, images, *, train=False, rngs=None):
        x = self.embed(images.reshape(len(images), -1))
        for block in self.blocks:
            x = block(x, train=train, rngs=rngs)
        x = self.norm(x, use_running_average=not train)
        return self.head(self.neck[1](self.neck[0](x), deterministic=not train, rngs=rngs))


def run(groups=TRUNK, steps=3, optimizer=None, **fields):
    """Returns the step, the states before and after, and the metrics of each step."""
    optimizer = dataclasses.replace(optimizer or OptimizerConfig(peak_lr=0.1), schedule="constant", warmup="0 steps", groups=groups)
    experiment = Experiment(batch_size=8, optimizer=optimizer, **fields)
    model, weights = functional(Small(nnx.Rngs(0)))
    periods = Periods(total=9, warmup=0, log=1, evaluate=9, save=9)
    step, create_state = make_step(experiment, model, periods, num_classes=3)
    compiled, begun, history = jax.jit(step), create_state(weights), []
    state = begun
    for _ in range(steps):
        state, metrics = compiled(state, BATCH)
        history.append(jax.device_get(metrics))
    return model, begun, state, history


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def but_head(params):
    return {name: tree for name, tree in params.items() if name != "head"}


@pytest.mark.parametrize("name", typing.get_args(typing.get_type_hints(OptimizerConfig)["name"]))
def test_the_frozen_part_is_constant_and_has_no_state_in_any_optimizer(name):
    average = {} if name == "schedule_free_adamw" else {"ema_decay": 0.9}
    _, begun, state, _ = run(optimizer=OptimizerConfig(name=name, peak_lr=0.1, weight_decay=0.1), **average)
    assert_same(but_head(begun["params"]), but_head(state["params"]))
    assert_same(begun["model_state"], state["model_state"])
    assert not np.array_equal(begun["params"]["head"]["kernel"], state["params"]["head"]["kernel"])
    assert_same(but_head(begun["params"]), but_head(state["average"]["params"]))
    assert_same(begun["model_state"], state["average"]["model_state"])
    assert not np.array_equal(state["average"]["params"]["head"]["kernel"], state["params"]["head"]["kernel"])
    assert not any(part in name for name in leaf_names(state["opt_state"]) for part in ("embed", "blocks", "norm", "neck"))


def test_the_frozen_part_runs_as_in_evaluation():
    model, begun, _, history = run(steps=1)
    logits, _ = model.apply(begun, BATCH["image"])
    expected = -jax.nn.log_softmax(logits)[jnp.arange(8), BATCH["label"]].mean()
    np.testing.assert_allclose(history[0]["loss"], expected, rtol=1e-6)
    _, _, _, unfrozen = run(groups=(), steps=1)
    assert abs(unfrozen[0]["loss"] - expected) > 1e-3  # batch statistics, dropout and drop path change the loss


def test_the_norm_of_the_gradient_and_its_flags_are_of_what_is_trained():
    model, begun, _, history = run(steps=1)

    def loss(head):
        logits, _ = model.apply({**begun, "params": {**begun["params"], "head": head}}, BATCH["image"])
        return -jax.nn.log_softmax(logits)[jnp.arange(8), BATCH["label"]].mean()

    grads = jax.grad(loss)(begun["params"]["head"])
    np.testing.assert_allclose(history[0]["grad_norm"], np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads))), rtol=1e-5)
    assert history[0]["finite"].shape == (3,)  # the loss, the head's bias and kernel


def test_a_module_of_which_a_part_is_trained_runs_as_in_training():
    """The second block's batch norm updates its statistics, the first block's does not.

    All parameters of the first block are frozen.
    """
    groups = ("^(embed|blocks/0|blocks/1/linear) frozen", "^(norm|neck|head|blocks/1/norm)")
    model, begun, state, _ = run(groups=groups)
    assert_same(begun["model_state"]["blocks"][0], state["model_state"]["blocks"][0])
    for name in ("mean", "var"):
        assert not np.allclose(begun["model_state"]["blocks"][1]["norm"][name], state["model_state"]["blocks"][1]["norm"][name])
        assert not np.allclose(begun["model_state"]["norm"][name], state["model_state"]["norm"][name])
    trainee = as_trained(model, OptimizerConfig(groups=groups))
    moves = [jax.tree.leaves(trainee.changes()["model_state"]["blocks"][i]) for i in range(2)]
    assert moves == [[False, False], [True, True]]
    blocks = nnx.merge(trainee.graphdef, begun["params"], begun["model_state"], trainee.constants).blocks
    x = jnp.ones((4, 16))
    first, second = (blocks[i](x, train=True, rngs=nnx.Rngs(dropout=0)) for i in range(2))
    np.testing.assert_array_equal(first, blocks[0](x, train=False, rngs=None))
    assert (np.asarray(second) == 1).all(1).any()  # some path was dropped


def test_nothing_differs_where_nothing_is_frozen():
    model, _ = functional(Small(nnx.Rngs(0)))
    assert freeze(model, jax.tree.map(lambda _: True, model.shapes["params"])) is model


@pytest.mark.parametrize(
    "fields", [{"accumulation": 2}, {"nonfinite": "skip"}, {"nonfinite": "skip", "spike_factor": 9.0}, {"ema_decay": 0.5}]
)
def test_frozen_parts_go_with_the_other_ways_to_train(fields):
    """The trained part has nothing random, so every way of training takes equal steps."""
    _, begun, state, _ = run(**fields)
    assert_same(but_head(begun["params"]), but_head(state["params"]))
    assert_same(begun["model_state"], state["model_state"])
    plain = run()[2]["params"]["head"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), state["params"]["head"], plain)


def test_an_update_that_is_not_finite_is_dropped_and_the_frozen_part_stays():
    model, begun, *_ = run(steps=0)
    optimizer = OptimizerConfig(peak_lr=1e-3, warmup="0 steps", schedule="constant", groups=TRUNK)
    experiment = Experiment(batch_size=8, optimizer=optimizer, nonfinite="skip")
    step, create_state = make_step(experiment, model, Periods(total=9, warmup=0, log=1, evaluate=9, save=9), num_classes=3)
    begun["params"]["head"]["kernel"] = jnp.full((16, 3), jnp.nan)
    state, metrics = jax.jit(step)(create_state(begun), BATCH)
    assert metrics["skipped"] == 1 and not metrics["finite"].all()
    assert_same(but_head(begun["params"]), but_head(state["params"]))


def test_layer_decay_goes_with_frozen_parts():
    groups = ("^(patch_embed|cls|pos|blocks/0/) frozen", "^(blocks/1/|norm|head)")
    experiment = tiny_experiment(optimizer=OptimizerConfig(peak_lr=1e-3, layer_decay=0.5, groups=groups))
    setup = set_up(experiment)
    assert not any("blocks/0" in name for name in leaf_names(setup.abstract_state["opt_state"]))
    assert any("blocks/1" in name for name in leaf_names(setup.abstract_state["opt_state"]))


def step_of(groups=(), **fields):
    options = {"patch_size": 14, "dim": 32, "depth": 3, "num_heads": 2, **fields}
    model = ModelConfig(name="vit_tiny_patch16", image_size=56, drop_path_rate=0.5, fields=options)
    return set_up(tiny_experiment(model=model, optimizer=OptimizerConfig(peak_lr=1e-3, warmup="0 steps", groups=groups)))


def test_a_frozen_trunk_costs_a_third_and_the_head():
    whole, frozen = (macs_in(step_of(groups).train_step.jaxpr.jaxpr) for groups in ((), TRUNK))
    setup = step_of(TRUNK)
    head = 16 * 32 * len(setup.train_source.class_names)  # images * dim * classes
    forward = setup.experiment.batch_size * setup.model.count_macs()
    assert frozen == forward + head < 0.35 * whole
    assert frozen == setup.experiment.batch_size * as_trained(setup.model, setup.experiment.optimizer).count_training_macs()


def test_the_first_blocks_are_free_where_the_last_ones_are_trained():
    groups = ("^(patch_embed|cls_token|pos_embed|blocks/[01]/) frozen", "^(blocks/2/|norm|head)")
    whole, part = (macs_in(step_of(groups).train_step.jaxpr.jaxpr) for groups in ((), groups))
    assert 0.4 * whole < part < 0.65 * whole  # 3 of 9 thirds forward, 2 of 9 backward


@pytest.mark.parametrize("fields", [{"remat": "full"}, {"remat": "dots"}, {"scan_blocks": True}, {"remat": "full", "scan_blocks": True}])
def test_blocks_that_are_recomputed_or_run_as_a_loop_freeze_alike(fields):
    groups = ("^(patch_embed|cls_token|pos_embed|blocks/[01]/) frozen", "^(blocks/2/|norm|head)")
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8))

    def losses(**fields):
        options = {"patch_size": 14, "dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5, "image_size": 56}
        model, weights = functional(create_model("vit_tiny_patch16", drop_path_rate=0.0, **options, **fields))
        trainee = as_trained(model, OptimizerConfig(groups=groups))
        trained, frozen = trainee.split(weights["params"])

        def loss(trained):
            params = {**frozen, **trained, "blocks": {**frozen["blocks"], **trained["blocks"]}}
            return (trainee.apply({**weights, "params": params}, images, jax.random.key(0))[0] ** 2).sum()

        return jax.jit(jax.value_and_grad(loss))(trained)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), losses(), losses(**fields))


def test_frozen_blocks_drop_no_path_where_blocks_run_as_a_loop():
    fields = {"patch_size": 14, "dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5, "image_size": 56, "drop_path_rate": 0.9}
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8))
    model, weights = functional(create_model("vit_tiny_patch16", scan_blocks=True, **fields))
    trainee = as_trained(model, OptimizerConfig(groups=TRUNK))
    in_training, _ = trainee.apply(weights, images, jax.random.key(0))
    np.testing.assert_array_equal(in_training, trainee.apply(weights, images)[0])


@pytest.mark.parametrize("name", ["shvit_s1", "nextvit_small", "biformer_tiny"])
def test_statistics_of_frozen_trunks_of_the_zoo_stay(name):
    model, weights = functional(create_model(name, num_classes=3, image_size=64))
    trainee = as_trained(model, OptimizerConfig(groups=TRUNK))
    shapes = jax.eval_shape(lambda w, x: trainee.apply(w, x, jax.random.key(0))[1], weights, jnp.zeros((2, 64, 64, 3), jnp.uint8))
    assert jax.tree.structure(shapes) == jax.tree.structure(weights["model_state"])
    assert not any(jax.tree.leaves(trainee.changes()["model_state"]))
    if name == "shvit_s1":
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
        assert_same(trainee.apply(weights, images, jax.random.key(0))[1], weights["model_state"])
        moved = model.apply(weights, images, jax.random.key(0))[1]
        assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (moved, weights["model_state"])), strict=True)) > 0.1


def test_a_student_with_a_frozen_trunk_follows_its_teacher():
    model, begun, *_ = run(steps=0)
    optimizer = OptimizerConfig(peak_lr=0.1, warmup="0 steps", schedule="constant", groups=TRUNK)
    loss = LossConfig(distillation=DistillationConfig(teacher="another run", alpha=1.0))
    experiment = Experiment(batch_size=8, optimizer=optimizer, loss=loss)
    teacher, teacher_weights = functional(Small(nnx.Rngs(5)))
    periods = Periods(total=9, warmup=0, log=1, evaluate=9, save=9)
    step, create_state = make_step(experiment, model, periods, num_classes=3, teacher=teacher)
    state, history = create_state({k: begun[k] for k in ("params", "model_state")}), []
    for _ in range(9):
        state, metrics = jax.jit(step)(state, BATCH, teacher_weights)
        history.append(float(metrics["loss"]))
    assert history[-1] < history[0]
    assert_same(but_head(begun["params"]), but_head(state["params"]))


def test_a_run_with_frozen_parts_resumes_from_its_checkpoint(tmp_path):
    setup = step_of(TRUNK)
    state = setup.initial_state() | {"step": jnp.int32(3)}
    with Checkpoints(tmp_path, keep=Retention(newest=1, best=0, every=None)) as checkpoints:
        checkpoints.save_last(3, state)
        step, restored = checkpoints.restore(setup.abstract_state)
        assert step == 3
        assert_same(jax.device_get(restored), jax.device_get(state))
        with pytest.raises(ConfigError, match="of another model or optimizer"):
            checkpoints.restore(step_of().abstract_state)


FSDP = """
    import dataclasses
    import jax, numpy as np
    from tests.train.conftest import tiny_experiment
    from vitlab.config import MeshConfig, ModelConfig, OptimizerConfig
    from vitlab.parallel.mesh import shard_batch
    from vitlab.train.setup import set_up

    MODEL = ModelConfig(name="vit_tiny_patch16", image_size=28, fields=dict(patch_size=14, dim=128, depth=2, num_heads=4))
    GROUPS = ("^(?!head|blocks/1) frozen", "^(head|blocks/1)")
    OPTIMIZER = OptimizerConfig(peak_lr=1e-3, warmup="0 steps", groups=GROUPS)

    def run(fsdp):
        setup = set_up(tiny_experiment(model=MODEL, optimizer=OPTIMIZER, mesh=MeshConfig(fsdp=fsdp), eval_batch_size=20, ema_decay=0.9))
        step, state = setup.train_step.lower().compile(), setup.initial_state()
        begun = jax.device_get(state["params"])
        with setup.open_train_batches(0) as batches:
            for _ in range(3):
                state, metrics = step(state, shard_batch(next(batches), setup.mesh))
        return begun, state, float(metrics["loss"])

    begun, state, loss = run(4)
    assert "fsdp" in state["params"]["blocks"][0]["mlp"]["fc1"]["kernel"].sharding.spec
    for part in ("params", "average"):
        tree = state["average"]["params"] if part == "average" else state["params"]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree["blocks"][0]), begun["blocks"][0])
    assert not np.array_equal(state["params"]["head"]["kernel"], begun["head"]["kernel"])
    np.testing.assert_allclose(loss, run(1)[2], rtol=0, atol=1e-4)  # sums are taken in another order
"""


@pytest.mark.slow
def test_frozen_parts_are_split_over_devices_as_others_are():
    run_on_four_devices(FSDP)

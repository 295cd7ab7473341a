import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vitlab.config import DistillationConfig, Experiment, LossConfig, MixConfig
from vitlab.device.mix import mix
from vitlab.functional import functional
from vitlab.models.registry import Preprocessing
from vitlab.parallel.mesh import make_mesh, replicated, shard_batch
from vitlab.tasks.task import MIX
from vitlab.train.state import make_state
from vitlab.train.step import compile_step, make_train_step, trace_step


class NormedModel(nnx.Module):
    """A convolution and a batch norm, which has statistics to update."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.preprocessing = Preprocessing(mean=(0.5,), std=(0.25,), image_size=(8, 8))

    def __call__(self, images, *, train=False, rngs=None):
        return self.head(nnx.relu(self.norm(self.conv(images), use_running_average=not train)).mean((1, 2)))


class PlainModel(nnx.Module):
    """A model without statistics: an image's logits depend on this image only."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.preprocessing = Preprocessing(mean=(0.5,), std=(0.25,), image_size=(8, 8))

    def __call__(self, images, *, train=False, rngs=None):
        return self.head(nnx.gelu(self.conv(images)).mean((1, 2)))


class FaultyModel(NormedModel):
    """Gives NaN for a batch whose first pixel is white."""

    def __call__(self, images, *, train=False, rngs=None):
        white = images[0, 0, 0, 0] >= (1 - 0.5) / 0.25
        return super().__call__(images, train=train, rngs=rngs) + jnp.where(white, jnp.nan, 0)


class SpikyModel(NormedModel):
    """Gives logits a thousand times as large for a batch whose first pixel is white."""

    def __call__(self, images, *, train=False, rngs=None):
        white = images[0, 0, 0, 0] >= (1 - 0.5) / 0.25
        return super().__call__(images, train=train, rngs=rngs) * jnp.where(white, 1000.0, 1.0)


class Teacher(NormedModel):
    """A teacher with weights, statistics and normalisation of its own."""

    def __init__(self):
        super().__init__(nnx.Rngs(7))
        self.norm.mean[...], self.norm.var[...] = jnp.arange(4.0), 1 + jnp.arange(4.0)
        self.preprocessing = Preprocessing(mean=(0.1,), std=(0.7,), image_size=(8, 8))


class TwoHeads(nnx.Module):
    """A head for each of two tokens, as a distilled ViT has."""

    def __init__(self, rngs):
        self.head, self.head_dist = nnx.Linear(64, 3, rngs=rngs), nnx.Linear(64, 3, rngs=rngs)
        self.preprocessing = Preprocessing(mean=(0.5,), std=(0.25,), image_size=(8, 8))

    def head_logits(self, images, *, train=False, rngs=None):
        x = images.reshape(len(images), -1)
        return self.head(x), self.head_dist(x)

    def __call__(self, images, *, train=False, rngs=None):
        return sum(self.head_logits(images)) / 2


def run(num_steps, log_every=2, kind=NormedModel, white_at=(), taught=False, weights_of_classes=None, **fields):
    model, weights = functional(kind(nnx.Rngs(0)))
    teacher, teacher_weights = functional(Teacher()) if taught else (None, None)
    optimizer = optax.sgd(0.1, momentum=0.9)
    experiment = Experiment(batch_size=4, **fields)
    options = {"experiment": experiment, "num_classes": 3, "log_every": log_every, "teacher": teacher, "class_weights": weights_of_classes}
    step = make_train_step(model, optimizer, lambda s: jnp.float32(0.1), **options)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8), "label": np.array([0, 1, 2, 0], np.int32)}
    mesh = make_mesh()
    state = jax.device_put(make_state(model, weights, optimizer, experiment), replicated(mesh))
    compiled, _ = compile_step(trace_step(step, state, batch, mesh, teacher=teacher))
    fixed = (jax.device_put(teacher_weights, replicated(mesh)),) if taught else ()
    history = []
    for number in range(num_steps):
        batch["image"][0, 0, 0, 0] = 255 if number in white_at else 0
        state, metrics = compiled(state, shard_batch(batch, mesh), *fixed)
        history.append(jax.device_get(metrics))
    return model, state, history, batch


def test_the_statistics_of_batch_norm_are_carried():
    model, state, _, batch = run(1)
    pixels = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.25
    expected = 0.5 * np.asarray(NormedModel(nnx.Rngs(0)).conv(pixels)).mean((0, 1, 2))
    np.testing.assert_allclose(state["model_state"]["norm"]["mean"], expected, rtol=1e-5, atol=1e-6)
    _, later, _, _ = run(2)
    assert not np.allclose(later["model_state"]["norm"]["mean"], expected)
    logits, kept = model.apply({"params": state["params"], "model_state": state["model_state"]}, jnp.asarray(batch["image"]))
    assert logits.shape == (4, 3)
    jax.tree.map(np.testing.assert_array_equal, kept, state["model_state"])  # evaluation does not change them


def test_metrics_are_means_since_the_last_log():
    *_, each, _ = run(4, log_every=1)
    *_, pairs, _ = run(4, log_every=2)
    np.testing.assert_allclose(pairs[3]["loss"], (each[2]["loss"] + each[3]["loss"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(pairs[2]["loss"], each[2]["loss"], rtol=1e-6)


def test_the_gradient_norm_and_the_finite_flags_cover_every_leaf():
    _, state, history, _ = run(1)
    assert history[0]["grad_norm"] > 0 and "skipped" not in history[0]
    assert history[0]["finite"].shape == (1 + len(jax.tree.leaves(state["params"])),) and history[0]["finite"].all()
    assert state["step"] == 1


def test_accumulation_gives_the_step_of_the_whole_batch():
    mix = MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem")
    whole, parts = (run(3, kind=PlainModel, mix=mix, accumulation=n) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), whole[1], parts[1])
    np.testing.assert_allclose(whole[2][-1]["grad_norm"], parts[2][-1]["grad_norm"], rtol=1e-5)


def test_statistics_go_from_part_to_part():
    _, whole, _, _ = run(1)
    _, parts, _, _ = run(1, accumulation=2)
    assert not np.allclose(whole["model_state"]["norm"]["mean"], parts["model_state"]["norm"]["mean"])  # each part updates the statistics
    assert np.abs(parts["model_state"]["norm"]["mean"]).max() > 0


def test_the_average_follows_the_weights_with_a_decay_that_grows():
    trajectory = [run(n, ema_decay=0.5)[1] for n in range(4)]
    expected = trajectory[0]["params"]
    for t, state in enumerate(trajectory[1:], 1):
        keep = min(0.5, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda a, x: keep * a + (1 - keep) * x, expected, state["params"])  # noqa: B023
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), trajectory[3]["average"]["params"], expected)
    mean = trajectory[3]["average"]["model_state"]["norm"]["mean"]
    assert not np.allclose(mean, trajectory[3]["model_state"]["norm"]["mean"]) and np.abs(mean).max() > 0


def test_skip_drops_the_update_of_a_step_that_is_not_finite_and_nothing_else():
    fields = {"nonfinite": "skip", "log_every": 4, "ema_decay": 0.5}
    _, state, history, _ = run(4, kind=FaultyModel, white_at=(1, 2), **fields)
    _, clean, expected, _ = run(2, **fields)
    for key in ("params", "model_state", "opt_state", "interval"):
        jax.tree.map(np.testing.assert_array_equal, state[key], clean[key])
    assert state["step"] == 4 and [bool(h["finite"].all()) for h in history] == [True, False, False, True]
    assert [(int(h["skipped"]), int(h["skipped_in_a_row"])) for h in history] == [(0, 0), (1, 1), (2, 2), (2, 0)]
    assert history[-1]["loss"] == expected[-1]["loss"]


def test_skip_changes_no_bit_of_a_run_without_faults():
    _, stopping, *_ = run(3)
    _, skipping, *_ = run(3, nonfinite="skip")
    jax.tree.map(np.testing.assert_array_equal, stopping, skipping)


def test_a_spike_is_dropped_once_it_is_known_what_is_usual(monkeypatch):
    monkeypatch.setattr("vitlab.train.step.STEADY_STEPS", 2)
    fields = {"nonfinite": "skip", "spike_factor": 10.0, "log_every": 5, "kind": SpikyModel}
    _, state, history, _ = run(5, white_at=(2, 3), **fields)
    _, clean, expected, _ = run(3, **fields)
    for key in ("params", "model_state", "opt_state", "interval"):
        jax.tree.map(np.testing.assert_array_equal, state[key], clean[key])
    assert [int(h["skipped_in_a_row"]) for h in history] == [0, 0, 1, 2, 0]
    norms = [h["grad_norm"] for h in expected]
    np.testing.assert_allclose(state["skips"]["usual_norm"], np.mean(norms), rtol=1e-6)
    _, _, early, _ = run(2, white_at=(1,), **fields)
    assert not early[1]["skipped"]


def loss_config(**options):
    return LossConfig(distillation=DistillationConfig(teacher="another run", **options))


def test_the_teacher_runs_as_in_evaluation_on_the_students_mixed_pixels_normalised_as_its_own():
    config = MixConfig(mixup_alpha=0.8)
    _, _, history, batch = run(1, kind=PlainModel, taught=True, loss=loss_config(alpha=1.0, temperature=2.0), mix=config)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), MIX)
    mixed, _ = mix(jnp.asarray(batch["image"]), jnp.zeros((4, 3)), key, config)
    pixels = np.asarray(mixed) / 255
    assert np.abs(pixels - batch["image"] / 255).max() > 0.1
    teacher, student = np.asarray(Teacher()((pixels - 0.1) / 0.7)), np.asarray(PlainModel(nnx.Rngs(0))((pixels - 0.5) / 0.25))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (teacher / 2, student / 2))
    np.testing.assert_allclose(history[0]["loss"], 4 * (np.exp(log_p) * (log_p - log_q)).mean(), rtol=1e-5)


def test_a_teacher_without_weight_in_the_loss_changes_no_step():
    _, alone, *_ = run(3, ema_decay=0.5)
    _, taught, *_ = run(3, ema_decay=0.5, taught=True, loss=loss_config(alpha=0.0))
    jax.tree.map(np.testing.assert_array_equal, alone, taught)
    _, taught, *_ = run(3, ema_decay=0.5, taught=True, loss=loss_config(alpha=0.5))
    assert not np.allclose(alone["params"]["head"]["kernel"], taught["params"]["head"]["kernel"])


def test_accumulation_with_a_teacher_gives_the_step_of_the_whole_batch():
    whole, parts = (run(3, kind=PlainModel, taught=True, loss=loss_config(), accumulation=n) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), whole[1], parts[1])


def test_of_two_heads_one_follows_the_labels_and_the_other_the_teacher():
    for alpha, still, moved in ((0.0, "head_dist", "head"), (1.0, "head", "head_dist")):
        _, state, *_ = run(1, kind=TwoHeads, taught=True, loss=loss_config(kind="hard", alpha=alpha))
        begun = functional(TwoHeads(nnx.Rngs(0)))[1]["params"]
        np.testing.assert_array_equal(state["params"][still]["kernel"], begun[still]["kernel"])
        assert not np.array_equal(state["params"][moved]["kernel"], begun[moved]["kernel"])


def test_the_step_weighs_the_classes():
    (plain,), (even,), (first,), (double,) = (
        run(1, log_every=1, weights_of_classes=weights)[2]
        for weights in (None, np.ones(3, np.float32), np.array([1, 0, 0], np.float32), np.array([2, 0, 0], np.float32))
    )
    assert even["loss"] == plain["loss"] and 0 < first["loss"] < plain["loss"]
    np.testing.assert_allclose(double["loss"], 2 * first["loss"], rtol=1e-6)
    assert first["accuracy"] == plain["accuracy"]

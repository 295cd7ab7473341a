import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vitlab.config import LossConfig
from vitlab.models.registry import Preprocessing
from vitlab.train.functional import functional
from vitlab.train.mesh import make_mesh, replicated, shard_batch
from vitlab.train.state import make_state
from vitlab.train.step import compile_step, make_train_step, trace_step


class NormedModel(nnx.Module):
    """A convolution and a BatchNorm, which has statistics to carry."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.preprocessing = Preprocessing(mean=(0.5,), std=(0.25,), image_size=(8, 8))

    def __call__(self, images, *, train=False, rngs=None):
        return self.head(nnx.relu(self.norm(self.conv(images), use_running_average=not train)).mean((1, 2)))


def run(num_steps, log_every=2, donate=True):
    model, weights = functional(NormedModel(nnx.Rngs(0)))
    optimizer = optax.sgd(0.1)
    step = make_train_step(model, optimizer, lambda s: jnp.float32(0.1), loss=LossConfig(), seed=0, log_every=log_every)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8), "label": np.array([0, 1, 2, 0], np.int32)}
    mesh = make_mesh()
    state = jax.device_put(make_state(weights, optimizer), replicated(mesh))
    compiled, _ = compile_step(trace_step(step, state, batch, mesh))
    history = []
    for _ in range(num_steps):
        state, metrics = compiled(state, shard_batch(batch, mesh))
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
    jax.tree.map(np.testing.assert_array_equal, kept, state["model_state"])  # evaluation leaves them


def test_metrics_are_means_since_the_last_log():
    *_, each, _ = run(4, log_every=1)
    *_, pairs, _ = run(4, log_every=2)
    np.testing.assert_allclose(pairs[3]["loss"], (each[2]["loss"] + each[3]["loss"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(pairs[2]["loss"], each[2]["loss"], rtol=1e-6)


def test_the_gradient_norm_and_the_finite_flags_cover_every_leaf():
    _, state, history, _ = run(1)
    assert history[0]["grad_norm"] > 0
    assert history[0]["finite"].shape == (1 + len(jax.tree.leaves(state["params"])),) and history[0]["finite"].all()
    assert state["step"] == 1

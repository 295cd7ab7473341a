import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.config import AugmentConfig, DataConfig, Experiment
from vitlab.data import open_source
from vitlab.evaluate.split import evaluate, make_eval_step, open_batches
from vitlab.functional import functional
from vitlab.models.registry import Preprocessing
from vitlab.parallel.mesh import make_mesh
from vitlab.tasks import setting_of
from vitlab.tasks.classification import TASK


class Linear(nnx.Module):
    def __init__(self, num_classes=10):
        self.head = nnx.Linear(28 * 28, num_classes, rngs=nnx.Rngs(0))
        self.preprocessing = Preprocessing(mean=(0.5,), std=(0.5,), image_size=(28, 28))

    def __call__(self, images, *, train=False, rngs=None):
        return self.head(images.reshape(images.shape[0], -1))


EXPERIMENT = Experiment(data=DataConfig(eval_split="test[:53]", num_threads=1), augment=AugmentConfig(crop="pad"))


def run(batch_size, model=None, **kwargs):
    fn, weights = functional(model or Linear())
    mesh, source = make_mesh(), open_source(EXPERIMENT.data, train=False)
    batches = open_batches(fn, source, EXPERIMENT, channels=1, batch_size=batch_size, mesh=mesh)
    evaluation = TASK.evaluation(setting_of(EXPERIMENT, TASK.options(), fn.preprocessing, num_classes=10))
    return evaluate(make_eval_step(fn, mesh, evaluation), weights, batches, evaluation, mesh=mesh, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 8, 53, 64])
def test_exactly_all_images_count_whatever_the_batch(batch_size):
    source = open_source(EXPERIMENT.data, train=False)
    logits = np.asarray(Linear()((source.images / 255 - 0.5) / 0.5), np.float64)
    order = np.argsort(-logits, axis=-1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    result = run(batch_size)
    assert result["images"] == 53
    assert result["top1"] == pytest.approx((order[:, 0] == source.labels).mean())
    assert result["top5"] == pytest.approx((order[:, :5] == source.labels[:, None]).any(-1).mean())
    assert result["loss"] == pytest.approx(-log_probs[np.arange(53), source.labels].mean(), rel=1e-5)


def test_equal_logits_are_no_free_hits():
    model = Linear()
    model.head.kernel[...] = jnp.zeros_like(model.head.kernel[...])
    labels = open_source(EXPERIMENT.data, train=False).labels
    assert run(16, model)["top1"] == pytest.approx((labels == 0).mean())


def test_nan_logits_are_wrong():
    model = Linear()
    model.head.kernel[...] = jnp.full_like(model.head.kernel[...], jnp.nan)
    assert run(16, model)["top5"] == 0


def test_it_stops_between_batches_when_told_to():
    assert run(8, should_stop=lambda: True) is None


def test_the_step_is_compiled_once(caplog):
    import logging

    with caplog.at_level(logging.WARNING), jax.log_compiles():
        run(8)
    assert sum("Finished XLA compilation of jit(eval_step)" in r.getMessage() for r in caplog.records) == 1

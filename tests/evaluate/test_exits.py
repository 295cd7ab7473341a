"""The anytime curve of a network with early exits."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.evaluate.test_classification import EXPERIMENT, Linear
from vitlab.config import ConfigError
from vitlab.data import open_source
from vitlab.evaluate.exits import check_exits, exits_evaluation, forward, macs_of_exits
from vitlab.evaluate.split import evaluate, make_eval_step, open_batches
from vitlab.functional import functional
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import Trained


class Two(Linear):
    """A linear exit, and one of its logits after another layer."""

    def __init__(self):
        super().__init__()
        self.later = nnx.Linear(10, 10, rngs=nnx.Rngs(1))

    def exits(self, images, *, train=False, rngs=None):
        first = self(images)
        return first, self.later(jax.nn.relu(first))


def test_each_exit_has_its_accuracy_and_only_its_own_products():
    fn, weights = functional(Two())
    fn = dataclasses.replace(fn, forward=forward)
    assert macs_of_exits(fn) == (7840, 7940)
    source, mesh = open_source(EXPERIMENT.data, train=False), make_mesh()
    batches = open_batches(fn, source, EXPERIMENT, channels=1, batch_size=16, mesh=mesh)
    evaluation = exits_evaluation(macs_of_exits(fn))
    result = evaluate(make_eval_step(fn, mesh, evaluation), weights, batches, evaluation, mesh=mesh)
    logits = Two().exits((source.images / 255 - 0.5).astype(np.float32) / 0.5)
    assert [row["top1"] for row in result["exits"]] == [pytest.approx((np.asarray(x).argmax(-1) == source.labels).mean()) for x in logits]
    assert result["images"] == 53 and [row["gmacs"] for row in result["exits"]] == [0.0, 0.0]


def test_a_model_without_exits_is_refused():
    fn, weights = functional(Linear())
    options = {"channels": 1, "class_names": ("a",), "origin": {"model": "own"}}
    with pytest.raises(ConfigError, match="own has none"):
        check_exits(Trained(model=fn, weights=weights, experiment=EXPERIMENT, **options))

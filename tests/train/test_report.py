import json
import logging

import jax.numpy as jnp
import pytest

from vitlab.runs.checkpoint import NonFiniteError
from vitlab.tasks.classification import TASK
from vitlab.train.clock import Clock
from vitlab.train.periods import Periods
from vitlab.train.report import Report


@pytest.fixture
def report(tmp_path):
    periods = Periods(total=9, warmup=0, log=1, evaluate=9, save=9, examples_per_epoch=8)
    clock = Clock(step=0, total_steps=9, batch_size=4)
    with Report(tmp_path, step=0, periods=periods, clock=clock, leaves=["a", "b"], max_skips=2, task=TASK) as report:
        yield report


def metrics(*, in_a_row: int, loss: float = 1.0, finite: bool | None = None):
    finite = in_a_row == 0 if finite is None else finite
    values = {
        "loss": loss,
        "accuracy": 0.5,
        "lr": 0.5,
        "grad_norm": 1.0 if finite else jnp.nan,
        "skipped": 5,
        "skipped_in_a_row": in_a_row,
    }
    return {**{k: jnp.asarray(v) for k, v in values.items()}, "finite": jnp.array([True, True, finite])}


def test_more_skips_in_a_row_than_allowed_end_the_run(report, caplog):
    with caplog.at_level(logging.WARNING):
        for step, in_a_row in enumerate((1, 0, 1, 2), 1):
            report.step(step, metrics(in_a_row=in_a_row))
        report.step(5, metrics(in_a_row=3))
    assert caplog.text.count("The update is dropped") == 3
    with pytest.raises(NonFiniteError, match="^step 5: not finite: the gradient of b .* More than max_skips=2 updates in a row"):
        report.flush()


def test_records_have_no_nan_which_json_has_not(report, tmp_path):
    report.step(1, metrics(in_a_row=1, loss=jnp.nan))
    report.flush()
    values = {"train_accuracy": 0.5, "lr": 0.5, "skipped": 5.0}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "epoch": 0.5, "images_seen": 4, **values}


def test_records_have_epoch_and_images_which_a_resumed_run_repeats(report, tmp_path):
    report.evaluation(4, {"top1": 0.5, "top5": 1.0, "loss": 1.0, "images": 8, "images_per_second": 3.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 4, "epoch": 2.0, "images_seen": 16, "eval_top1": 0.5, "eval_top5": 1.0, "eval_loss": 1.0, "eval_images": 8}


def test_a_spike_is_told_and_ends_the_run_likewise(report, caplog):
    with caplog.at_level(logging.WARNING):
        report.step(1, metrics(in_a_row=1, finite=True))
        report.flush()
    assert "step 1: a spike: learning rate 0.5, gradient norm 1. The update is dropped (1 in a row)" in caplog.text
    report.step(2, metrics(in_a_row=3, finite=True))
    with pytest.raises(NonFiniteError, match="^step 2: a spike.* More than max_skips=2"):
        report.flush()

"""A run ends after a time without a better evaluation, at one step despite interruptions."""

import dataclasses
import os
import signal

import pytest

from tests.train.conftest import tiny_experiment
from tests.train.test_loop import records
from vitlab.config import ConfigError
from vitlab.signals import Stopped
from vitlab.tasks.classification import TASK
from vitlab.train.loop import train
from vitlab.train.periods import Periods
from vitlab.train.report import Report

# No update changes a float32 parameter visibly: the first evaluation, after step 4, remains the
# best.
STANDS_STILL = tiny_experiment(
    optimizer=dataclasses.replace(tiny_experiment().optimizer, peak_lr=1e-12, weight_decay=0.0),
    eval_every="4 steps",
    stop_after="8 steps",
)


def test_a_run_without_a_better_evaluation_ends_early_and_stays_ended(tmp_path):
    result = train(STANDS_STILL, tmp_path / "run")
    assert result["step"] == 12
    assert list(records(tmp_path / "run", "eval_top1")) == [4, 8, 12]
    assert (tmp_path / "run" / "checkpoints" / "12").is_dir()
    assert train(STANDS_STILL, tmp_path / "run") == result


@pytest.mark.parametrize("step", [8, 12])
def test_an_interrupted_run_ends_at_the_same_step(tmp_path, monkeypatch, step):
    whole = train(STANDS_STILL, tmp_path / "whole")
    evaluation = Report.evaluation

    def interrupted(self, at, result):
        if at == step and not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        evaluation(self, at, result)

    monkeypatch.setattr(Report, "evaluation", interrupted)
    if step == 12:  # the run ends before it looks at the signal
        assert train(STANDS_STILL, tmp_path / "run") == whole
    else:
        with pytest.raises(Stopped):
            train(STANDS_STILL, tmp_path / "run")
    assert train(STANDS_STILL, tmp_path / "run") == whole
    for name in ("eval_top1", "train_loss"):
        assert records(tmp_path / "run", name) == records(tmp_path / "whole", name)


def test_the_first_of_equal_evaluations_is_the_best():
    report = Report.__new__(Report)
    report._patience, report._task = 10, TASK
    for scores, step, ends in (
        ({5: 0.5}, 5, False),
        ({5: 0.5, 10: 0.5}, 10, False),
        ({5: 0.5, 10: 0.5, 15: 0.4}, 15, True),
        ({5: 0.5, 10: 0.6, 15: 0.4}, 15, False),
        ({5: 0.5, 10: 0.4, 15: 0.6}, 15, False),
        ({5: 0.5, 10: 0.4, 15: 0.4}, 14, False),  # step 14 was not evaluated
        ({5: 0.5, 10: 0.4, 15: 0.4, 20: 0.9}, 15, True),  # later records do not count
    ):
        report.records = type("Records", (), {"lines": [{"step": s, "eval_top1": value} for s, value in scores.items()]})
        assert report.stalls(step) is ends, (scores, step)


def test_patience_is_a_duration():
    assert Periods.of(tiny_experiment(stop_after="2 epochs"), examples_per_epoch=64).patience == 8
    assert Periods.of(tiny_experiment(), examples_per_epoch=64).patience is None
    with pytest.raises(ConfigError, match="duration"):
        tiny_experiment(stop_after="soon")

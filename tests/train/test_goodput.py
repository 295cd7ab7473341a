import time

import pytest

from vitlab.train import goodput
from vitlab.train.clock import Clock
from vitlab.train.goodput import PARTS, Goodput, goodput_text


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""

    class Watch:
        now = 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: Watch.now)
    return Watch


def test_time_that_is_in_no_part_is_in_steps(clock):
    found = Goodput()
    for part, seconds in (("compile", 20.0), ("save", 3.0), ("save", 2.0)):
        with found.spent_on(part):
            clock.now += seconds
    waiting = Clock(step=0, total_steps=9, batch_size=4, goodput=found)

    def fetch():
        clock.now += 5.0

    waiting.waiting(fetch)
    clock.now += 70.0
    summary = found.summary()
    assert summary["goodput"] == pytest.approx(0.7)
    expected = {"step": 70.0, "compile": 20.0, "save": 5.0, "wait": 5.0}
    assert {name: summary[f"{name}_seconds"] for name in ("step", *PARTS)} == {**dict.fromkeys(PARTS, 0.0), **expected}
    assert goodput_text(summary) == "70.0% of 100 s in steps; compile 20.0%, save 5.0%, wait 5.0%"


def test_a_part_that_fails_is_counted(clock):
    found = Goodput()
    with pytest.raises(ValueError), found.spent_on("restore"):
        clock.now += 1.0
        raise ValueError
    assert found.summary()["restore_seconds"] == 1.0 and goodput.PARTS[0] == "setup"

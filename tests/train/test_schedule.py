import numpy as np
import pytest

from vitlab.config import OptimizerConfig
from vitlab.train.periods import Periods
from vitlab.train.schedule import make_schedule


def values(steps, *, warmup=10, total=110, cooldown="0 steps", decay_every=30, **fields):
    periods = Periods(total=total, warmup=warmup, cooldown=int(cooldown.split()[0]), decay_every=decay_every, log=1, evaluate=1, save=1)
    schedule = make_schedule(OptimizerConfig(peak_lr=1e-2, **fields), periods)
    return [float(schedule(s)) for s in steps]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "cosine", "end_lr": 1e-4}, {0: 0, 5: 5e-3, 10: 1e-2, 60: (1e-2 + 1e-4) / 2, 110: 1e-4, 200: 1e-4}),
        ({"schedule": "linear", "end_lr": 2e-3}, {5: 5e-3, 10: 1e-2, 35: 8e-3, 110: 2e-3, 111: 2e-3}),
        ({"schedule": "constant"}, {5: 5e-3, 10: 1e-2, 110: 1e-2}),
        ({"schedule": "step"}, {10: 1e-2, 29: 1e-2, 30: 1e-3, 60: 1e-4, 90: 1e-5}),
        ({"schedule": "rsqrt"}, {10: 1e-2, 40: 1e-2 / 2**0.5, 100: 5e-3}),
        ({"schedule": "rsqrt", "cooldown": "20 steps"}, {40: 1e-2 / 2**0.5, 100: 2.5e-3, 110: 0}),
        ({"schedule": "wsd", "cooldown": "20 steps", "end_lr": 1e-3}, {10: 1e-2, 90: 1e-2, 100: 5.5e-3, 110: 1e-3}),
    ],
    ids=lambda x: str(x)[:40],
)
def test_schedules_pass_through_their_points(fields, expected):
    np.testing.assert_allclose(values(expected, **fields), list(expected.values()), rtol=1e-5, atol=1e-9)


def test_without_warm_up_the_first_step_has_the_peak():
    assert values([0], warmup=0, total=5) == [np.float32(1e-2)]

"""A pod in small: processes of one run, killed at random and started again in other numbers.

python -m pytest -m slow tests/train/test_pod_rehearsal.py; each start takes the processor time of
its processes' imports, 5 s each.
"""

import random
import time

import pytest

from tests.train.conftest import config_file, start, steps_recorded, tiny_experiment, wait_for
from tests.train.test_distributed import agree, finish, start_all

KILLS = 10
COUNTS = (8, 4)  # numbers of processes, in turn
STEPS = 200


@pytest.mark.slow
def test_kill_9_of_any_process_and_a_restart_with_4_or_8_gives_the_images_and_curve_of_one_process(tmp_path):
    rng = random.Random()
    experiment = tiny_experiment(duration=f"{STEPS} steps", eval_batch_size=24)
    config, run = config_file(tmp_path, experiment), tmp_path / "pod"
    for kill in range(KILLS):
        processes = start_all(config, run, *[()] * COUNTS[kill % len(COUNTS)])
        until = steps_recorded(run) + rng.randint(1, STEPS // KILLS)
        wait_for(lambda processes=processes, until=until: processes[0].poll() is not None or steps_recorded(run) >= until)
        time.sleep(rng.random())  # also between two records, and during a save
        rng.choice(processes).kill()
        for process in processes:  # as launchers do, which end the others of a job
            process.kill()
            process.communicate()
        print(f"killed one of {len(processes)} processes at step {steps_recorded(run)}")
    finish(start_all(config, run, *[()] * COUNTS[KILLS % len(COUNTS)]), 0)
    finish([start(config, tmp_path / "one", num_devices=max(COUNTS))], 0)
    agree(run, tmp_path / "one")

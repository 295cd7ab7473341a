"""Checkpoints with flipped bits, and with cut or removed files, all over a checkpoint.

The figures are in docs/reliability.md: python -m pytest -m slow -s
tests/runs/test_checkpoint_trial.py
"""

import collections
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

from tests.runs.test_checkpoint import make, restore
from vitlab.runs.checkpoint import Checkpoints
from vitlab.runs.retention import Retention

ROUNDS = {"flip": 120, "cut": 30, "remove": 30, "zero": 30}


def damage(path: pathlib.Path, harm: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif harm == "cut":
        del data[rng.randrange(len(data)) :]
    elif harm == "zero":
        start = rng.randrange(len(data))
        data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.unlink() if harm == "remove" else path.write_bytes(data)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ROUNDS)
def test_damage_anywhere_in_a_checkpoint_is_found_or_changes_no_bit_of_the_state(tmp_path, harm):
    rng, outcomes = random.Random(harm), collections.Counter()
    with Checkpoints(tmp_path / "whole" / "checkpoints", keep=Retention(newest=2)) as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, make(step))
    for number in range(ROUNDS[harm]):
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", run)
        every = files(run / "checkpoints" / "3")
        # Half of the rounds damage a random byte, so mostly large files; the others damage each
        # file alike.
        sizes = [path.stat().st_size for path in every] if number % 2 else None
        damage(rng.choices(every, sizes)[0], harm, rng)
        restored = restore(run / "checkpoints", read_only=True)
        assert restored is not None
        step, state = restored
        jax.tree.map(np.testing.assert_array_equal, state, make(step))  # the state of step 3, or of step 2 as it was saved
        outcomes["found" if step == 2 else "harmless"] += 1
        shutil.rmtree(run)
    print(f"{harm}: {dict(outcomes)}")
    assert outcomes["found"] > outcomes["harmless"]

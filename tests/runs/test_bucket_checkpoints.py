"""Checkpoints in an emulated bucket of Google: damaged, unfinished, and while the network fails."""

import itertools

import jax
import numpy as np
import pytest

from tests.emulator import BUCKET
from tests.runs.test_checkpoint import TARGET, make
from vitlab import buckets
from vitlab.buckets import run_path
from vitlab.files import exists, remove
from vitlab.runs.checkpoint import CheckpointError, Checkpoints
from vitlab.runs.retention import Retention

_numbers = itertools.count()


@pytest.fixture
def saved(google):
    folder = run_path(f"gs://{BUCKET}/saved/{next(_numbers)}/checkpoints")
    with Checkpoints(folder, keep=Retention(newest=2)) as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, make(step))
    return folder


def restore(folder, *, read_only=False):
    with Checkpoints(folder, keep=Retention(newest=2), read_only=read_only) as checkpoints:
        return checkpoints.restore(TARGET)


def objects_of(folder):
    return [run_path(f"gs://{name}") for name in buckets.fsspec_backend.fs("gs://x").find(str(folder).removeprefix("gs://"))]


def test_a_flipped_bit_is_found_and_its_checkpoint_set_aside(saved, caplog):
    step, state = restore(saved, read_only=True)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, state, make(3))
    largest = max(objects_of(saved / "3" / "weights"), key=lambda path: len(buckets.read(path)))
    data = bytearray(buckets.read(largest))
    data[len(data) // 2] ^= 1
    buckets.write(largest, bytes(data))
    step, state = restore(saved)
    assert step == 2 and "checkpoint of step 3" in caplog.text and "going on from step 2" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state, make(2))
    assert not exists(saved / "3") and exists(saved.parent / "damaged" / "3" / "commit_success.txt")


def test_a_checkpoint_that_a_killed_process_has_not_finished_is_none_and_makes_way(saved):
    remove(saved / "3" / "commit_success.txt")
    assert restore(saved, read_only=True)[0] == 2
    with Checkpoints(saved, keep=Retention(newest=2)) as checkpoints:
        assert checkpoints.restore(TARGET)[0] == 2
        checkpoints.save_last(3, make(3))
    assert restore(saved, read_only=True)[0] == 3


def test_a_bucket_that_cannot_be_reached_damages_no_checkpoint(saved, google, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENT", buckets.Patience(seconds=0.0, attempt=1.0))
    with Checkpoints(saved, keep=Retention(newest=2)) as checkpoints:
        monkeypatch.setattr(checkpoints, "_read", lambda *_: (_ for _ in ()).throw(ConnectionError("dead")))
        google.stop()
        with pytest.raises(CheckpointError, match="cannot be read: .*the bucket cannot be reached"):
            checkpoints.restore(TARGET)
        google.start()
    assert restore(saved)[0] == 3

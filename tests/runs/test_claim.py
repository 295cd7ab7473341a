"""The owner of a run folder while the folder is moved, deleted, replaced and taken over."""

import os
import shutil

import pytest

from tests.runs.test_checkpoint import make, steps_of
from vitlab.config import ConfigError
from vitlab.runs.checkpoint import Checkpoints
from vitlab.runs.claim import Claim, FolderClaim, FolderLostError
from vitlab.runs.retention import Retention

FOLLOWS = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system has no names for open folders")


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    with FolderClaim(path) as own:
        own.lock()
        (path / "checkpoints").mkdir()
        yield own


def look(own: Claim) -> bool:
    """Returns whether the run notices a change, as if a second had passed."""
    own._looked = float("-inf")
    return own.lost()


def take_over(path):
    other = FolderClaim(path)
    other.lock()
    return other


def test_a_folder_at_its_place_is_the_runs(run):
    run.check()
    run.check_place()
    assert not look(run) and (run.root / "checkpoints").samefile(run.path / "checkpoints")


def test_the_place_is_looked_at_once_a_second(run, monkeypatch):
    run.path.rename(run.path.with_name("moved"))
    assert not run.lost()
    run._looked -= 1.1
    assert run.lost()


@FOLLOWS
def test_a_moved_folder_is_written_where_it_is_and_the_run_ends_with_its_new_name(run):
    moved = run.path.with_name("moved")
    run.path.rename(moved)
    run.path.mkdir()
    with take_over(run.path), Checkpoints(run.path / "checkpoints", own=run) as checkpoints:
        checkpoints.save_last(1, make(1))
        assert look(run)
        with pytest.raises(
            FolderLostError, match=f"is no longer this run's: it was moved to {moved}; the same command with that --workdir"
        ):
            run.check_place()
    assert steps_of(moved / "checkpoints") == [1]
    assert [p.name for p in run.path.iterdir()] == [".lock"]


@FOLLOWS
def test_checkpoints_are_dropped_in_the_own_folder_while_another_run_has_its_place(run):
    moved = run.path.with_name("moved")
    with Checkpoints(run.path / "checkpoints", own=run) as checkpoints:
        checkpoints.save_last(1, make(1))
        shutil.copytree(run.path, moved)
        run.path.rename(run.path.with_name("own"))
        moved.rename(run.path)
        checkpoints.save_last(2, make(2))
    assert steps_of(run.path / "checkpoints") == [1] and steps_of(run.path.with_name("own") / "checkpoints") == [2]


def test_where_the_system_cannot_follow_nothing_is_written_by_the_path_of_a_moved_folder(run):
    run._follows, run.root = False, run.path
    with Checkpoints(run.path / "checkpoints", keep=Retention(newest=1), own=run) as checkpoints:
        checkpoints.save_last(1, make(1))
        run.path.rename(run.path.with_name("moved"))
        shutil.copytree(run.path.with_name("moved"), run.path)
        with pytest.raises(FolderLostError, match="it was moved"):
            checkpoints.save(2, make(2))
    assert steps_of(run.path / "checkpoints") == [1]


def test_a_deleted_folder_is_lost_even_if_there_is_a_new_one(run):
    shutil.rmtree(run.path)
    for _ in range(2):
        assert look(run)
        with pytest.raises(FolderLostError, match="it was deleted; nothing more is saved"):
            run.check()
        run.path.mkdir(exist_ok=True)
    assert list(run.path.iterdir()) == []


def test_a_folder_that_is_being_deleted_is_lost_before_it_is_gone(run):
    (run.path / "config.json").write_text("{}")
    run.marker = "config.json"
    run.check()
    for name in (".lock", "config.json"):
        (run.path / name).unlink()
    with pytest.raises(FolderLostError, match="it was deleted"):
        run.check()
    assert not (run.path / ".lock").exists()


@FOLLOWS
def test_moved_and_back_and_a_link_to_the_moved_folder_are_no_loss(run):
    moved = run.path.with_name("moved")
    run.path.rename(moved)
    assert look(run)
    moved.rename(run.path)
    assert not look(run)
    run.path.rename(moved)
    run.path.symlink_to(moved)
    assert not look(run)
    run.check_place()


def test_a_link_to_another_folder_is_a_loss(run, tmp_path):
    run.path.rename(run.path.with_name("moved"))
    (tmp_path / "other").mkdir()
    run.path.symlink_to(tmp_path / "other")
    with pytest.raises(FolderLostError, match="it was moved"):
        run.check_place()


def test_a_deleted_lock_is_made_again_and_keeps_others_out(run):
    (run.path / ".lock").unlink()
    assert not look(run)
    with pytest.raises(ConfigError, match="another process is training in .*: process [0-9]+ on "):
        take_over(run.path)
    run.check_place()


@pytest.mark.parametrize("how", ["a new lock", "a lock that does not hold"])
def test_a_run_that_took_the_folder_over_ends_the_first(run, how, monkeypatch):
    """The lock was deleted, or the file system is a network's whose locks hold on one host only."""
    if how == "a new lock":
        (run.path / ".lock").unlink()
    else:
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with take_over(run.path) as other:
        assert look(run)
        with pytest.raises(FolderLostError, match="another process has taken it over; nothing more is saved"):
            run.check()
        other.check_place()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with take_over(tmp_path) as own:
        own.check_place()
    assert "locks do not work on this file system (Operation not supported)" in caplog.text

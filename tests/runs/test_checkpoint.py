import errno
import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vitlab.config import ConfigError
from vitlab.parallel.mesh import make_mesh, sharded_shapes
from vitlab.runs.checkpoint import CheckpointError, Checkpoints, NonFiniteError, SaveError
from vitlab.runs.retention import Retention


def make(value: float = 0.0, *, step: int | None = None):
    # Random numbers do not compress, so that every flipped bit matters.
    kernel = jax.random.normal(jax.random.key(0), (64, 64)) + value
    zero, step = jnp.zeros((), jnp.int32), jnp.asarray(value if step is None else step, jnp.int32)
    params = {"blocks": {0: {"kernel": kernel}}, "bias": jnp.full((3,), value, jnp.bfloat16)}
    rest = {"step": step, "interval": {"loss": zero}, "skips": {"total": zero}}
    return {"params": params, "model_state": {}, "opt_state": (params,), **rest}


TARGET = sharded_shapes(jax.eval_shape(make), make_mesh())


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    with Checkpoints(tmp_path / "checkpoints", keep=Retention(newest=3)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make(step))
    return tmp_path / "checkpoints"


def restore(folder, target=TARGET, *, read_only=False):
    with Checkpoints(folder, keep=Retention(newest=3), read_only=read_only) as checkpoints:
        return checkpoints.restore(target)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: pathlib.Path, position: float):
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)


def test_what_is_restored_is_what_was_saved(saved):
    step, state = restore(saved)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, state, make(3))
    assert list(state["params"]["blocks"]) == [0]


def test_weights_are_restored_without_the_optimizer(saved):
    step, state = restore(saved, {k: TARGET[k] for k in ("params", "model_state")}, read_only=True)
    assert (step, set(state)) == (3, {"params", "model_state"})


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_found_and_the_next_older_step_taken(saved, position, caplog):
    flip_bit(largest_file(saved / "3" / "weights"), position)
    step, state = restore(saved)
    assert step == 2 and "checkpoint of step 3" in caplog.text and "going on from step 2" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state, make(2))
    assert (saved.parent / "damaged" / "3").exists()
    with Checkpoints(saved, keep=Retention(newest=3)) as checkpoints:
        checkpoints.save(3, make(3))
    assert restore(saved)[0] == 3


def test_wrong_values_that_read_well_are_named(saved, caplog):
    shutil.rmtree(saved / "3" / "weights")
    shutil.copytree(saved / "2" / "weights", saved / "3" / "weights")
    assert restore(saved, read_only=True)[0] == 2
    assert "params/bias does not match its checksum" in caplog.text


@pytest.mark.parametrize("target", [TARGET, {k: TARGET[k] for k in ("params", "model_state")}])
@pytest.mark.parametrize("what", [".", "manifest"])
def test_a_checkpoint_under_the_number_of_another_step_is_damaged(saved, what, target, caplog):
    shutil.copytree(saved / "3", saved / "5")
    if what == "manifest":
        shutil.rmtree(saved / "5" / what)
        shutil.copytree(saved / "2" / what, saved / "5" / what)
    step, state = restore(saved, target)
    assert step == 3 and "its state is of another step than 5, the name of its folder" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state["params"], make(3)["params"])
    assert steps_of(saved) == [1, 2, 3] and (saved.parent / "damaged" / "5").exists()


def test_a_state_is_saved_only_under_its_own_step(saved):
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match="the state is of step 4, and cannot be saved as step=5"):
        checkpoints.save(5, make(4))


@pytest.mark.parametrize("leftover", ["file", "folder", "full folder", "link"])
def test_what_a_killed_probe_has_left_blocks_no_save(saved, leftover, tmp_path):
    probe = saved / ".probe-0"
    if leftover == "file":
        probe.write_text("")
    elif leftover == "link":
        probe.symlink_to(tmp_path)
    else:
        probe.mkdir()
        (probe / "a.tmp").write_text("") if leftover == "full folder" else None
    with Checkpoints(saved) as checkpoints:
        checkpoints.save_last(4, make(4))
    assert [p.name for p in saved.iterdir()] == ["4"] and tmp_path.exists()


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_truncated_and_missing_files_fall_back(saved, harm):
    path = largest_file(saved / "3" / "weights")
    path.write_bytes(path.read_bytes()[:100]) if harm == "truncate" else path.unlink()
    assert restore(saved)[0] == 2


def test_with_none_left_it_says_so_and_moves_nothing(saved):
    for step in (1, 2, 3):
        flip_bit(saved / str(step) / "manifest" / "metadata", 0.5)
    with pytest.raises(CheckpointError, match="all checkpoints .* are damaged: steps 1, 2, 3"):
        restore(saved)
    assert (saved / "3").exists()


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


def test_another_dtype_is_refused_not_cast(saved):
    target = sharded_shapes({**TARGET, "step": jax.ShapeDtypeStruct((), jnp.float32)}, make_mesh())
    with pytest.raises(ConfigError, match=r"1 tensors differ, first step: checkpoint int32\[\], model float32\[\]"):
        restore(saved, target)


def test_a_state_that_is_not_finite_is_not_saved(saved):
    with (
        Checkpoints(saved, keep=Retention(newest=3)) as checkpoints,
        pytest.raises(NonFiniteError, match="step 4: opt_state/0/bias is not finite"),
    ):
        checkpoints.save(4, make(float("nan"), step=4))
    assert restore(saved)[0] == 3


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Retention(newest=1), {8}),
        (Retention(newest=2, best=1), {7, 8, 3}),
        (Retention(newest=1, best=2), {8, 3, 5}),
        (Retention(newest=1, best=9), {8, 1, 3, 5, 6}),
        (Retention(newest=1, every=3), {8, 3, 6}),
        (Retention(newest=1, best=1, every=4), {8, 3, 5}),
    ],
)
def test_newest_best_and_one_every_so_often_are_kept_and_nan_is_never_best(rule, kept):
    scores = {1: 0.1, 3: 0.7, 5: 0.6, 6: 0.6, 7: float("nan"), 8: float("inf"), 9: 0.9}
    assert rule.kept([1, 2, 3, 5, 6, 7, 8], scores) == kept


def test_the_rule_holds_whether_checkpoints_are_dropped_one_by_one_or_at_once(saved):
    rule, steps, scores = Retention(newest=1, best=1, every=4), range(1, 12), {s: -abs(s - 2.1) for s in range(1, 12)}
    left = set()
    for step in steps:
        left = rule.kept(left | {step}, scores)
    assert left == rule.kept(steps, scores) == {2, 4, 8, 11}


def test_the_best_is_kept_on_the_disk_and_the_newest_with_it(saved):
    with Checkpoints(saved, keep=Retention(newest=1, best=1)) as checkpoints:
        for step in (4, 5):
            checkpoints.save(step, make(step), scores={2: 0.9, 3: 0.1, 4: float("nan"), 5: 0.5})
    assert steps_of(saved) == [2, 5] and restore(saved)[0] == 5


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_fails_is_said_and_tried_again_at_the_next_and_loses_nothing(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "save", full_disk)
            checkpoints.save(2, make(2))
        assert "step 2 could not be saved ([Errno 28] No space left on device); the run goes on from memory" in caplog.text
        assert steps_of(folder) == [1]
        checkpoints.save(3, make(3))
        checkpoints.save_last(3, make(3))
    assert steps_of(folder) == [3] and restore(folder)[0] == 3


def test_a_write_that_fails_in_the_background_leaves_the_older_checkpoint(tmp_path, caplog):
    folder, unlimited = tmp_path / "checkpoints", (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))  # longest file in bytes
        try:
            checkpoints.save(2, make(2))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert "step 2 could not be saved" in caplog.text and restore(folder, read_only=True)[0] == 1
        checkpoints.save_last(3, make(3))
    assert sorted(p.name for p in folder.iterdir()) == ["3"]  # no unfinished checkpoint is left


def test_a_last_state_that_cannot_be_saved_is_a_clear_failure(saved, monkeypatch):
    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "save", full_disk)
        with pytest.raises(SaveError, match=r"step 4 could not be saved in .*No space left on device; the newest step that is saved is 3"):
            checkpoints.save_last(4, make(4))
        monkeypatch.undo()
        with pytest.raises(SaveError, match="records"):
            checkpoints.save_last(4, make(4), before=lambda: full_disk_of_the_records())
    assert steps_of(saved) == [1, 2, 3]


def full_disk_of_the_records():
    raise OSError(errno.ENOSPC, "no space for the records")


def test_a_folder_that_is_not_there_any_more_is_said_at_once_and_taken_up_again(saved, monkeypatch):
    with Checkpoints(saved) as checkpoints:
        saved.rename(saved.with_name("away"))
        saved.write_text("")
        monkeypatch.setattr(ocp.CheckpointManager, "save", lambda *_, **__: pytest.fail("Orbax was asked, and may wait for minutes"))
        with pytest.raises(SaveError, match="Not a directory"):
            checkpoints.save_last(4, make(4))
        monkeypatch.undo()
        saved.unlink()
        saved.with_name("away").rename(saved)
        checkpoints.save_last(5, make(5))
    assert steps_of(saved) == [5]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_became_read_only_is_said_and_left_as_it_is(saved, caplog):
    with Checkpoints(saved) as checkpoints:
        saved.chmod(0o555)
        try:
            checkpoints.save(4, make(4))
            with pytest.raises(SaveError, match="Permission denied"):
                checkpoints.save_last(4, make(4))
        finally:
            saved.chmod(0o755)
        assert "step 4 could not be saved" in caplog.text and restore(saved, read_only=True)[0] == 3
        checkpoints.save_last(5, make(5))
    assert restore(saved)[0] == 5


def steps_of(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_only_the_newest_are_kept(saved):
    with Checkpoints(saved, keep=Retention(newest=2)) as checkpoints:
        checkpoints.save(4, make(4))
    assert steps_of(saved) == [3, 4]

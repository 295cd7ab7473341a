import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.config import ConfigError
from vitlab.train.checkpoint import CheckpointError, Checkpoints, NonFiniteError
from vitlab.train.mesh import make_mesh
from vitlab.train.state import abstract_state


def make(value: float = 0.0):
    # Random numbers, so that compression leaves no slack in which a flipped bit would not matter.
    kernel = jax.random.normal(jax.random.key(0), (64, 64)) + value
    zero = jnp.zeros((), jnp.int32)
    params = {"blocks": {0: {"kernel": kernel}}, "bias": jnp.full((3,), value, jnp.bfloat16)}
    rest = {"step": zero, "interval": {"loss": zero}, "skips": {"total": zero}}
    return {"params": params, "model_state": {}, "opt_state": (params,), **rest}


TARGET = abstract_state(make, make_mesh())


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make(step))
    return tmp_path / "checkpoints"


def restore(folder, target=TARGET, *, read_only=False):
    with Checkpoints(folder, keep=3, read_only=read_only) as checkpoints:
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
    with Checkpoints(saved, keep=3) as checkpoints:
        checkpoints.save(3, make(3))
    assert restore(saved)[0] == 3


def test_wrong_values_that_read_well_are_named(saved, caplog):
    manifest = saved / "3" / "manifest" / "metadata"
    tree = json.loads(manifest.read_text())
    other = json.loads((saved / "2" / "manifest" / "metadata").read_text())
    manifest.write_text(json.dumps(other))
    assert tree != other and restore(saved, read_only=True)[0] == 2
    assert "opt_state/0/bias does not match its checksum" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that TensorStore never awaits
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
    target = abstract_state(lambda: {**make(), "step": jnp.zeros((), jnp.float32)}, make_mesh())
    with pytest.raises(ConfigError, match=r"1 tensors differ, first step: checkpoint int32\[\], model float32\[\]"):
        restore(saved, target)


def test_a_state_that_is_not_finite_is_not_saved(saved):
    with Checkpoints(saved, keep=3) as checkpoints, pytest.raises(NonFiniteError, match="step 4: opt_state/0/bias is not finite"):
        checkpoints.save(4, make(float("nan")))
    assert restore(saved)[0] == 3


def test_only_the_newest_are_kept(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(4, make(4))
    assert sorted(int(p.name) for p in saved.iterdir() if p.name.isdigit()) == [3, 4]

"""Worker processes and the memory their batches travel in."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.processes import SECONDS, run_script
from vitlab.data.workers import Workers


def numbered(index: int, count: int):
    """Yields batches that record who made them."""
    number = index
    while True:
        yield {"number": np.array([number]), "image": np.full((2, 50, 3), number % 256, np.uint8), "none": np.zeros((0, 4), np.float32)}
        number += count


def broken(index: int, count: int):
    yield from [{"number": np.array([0])}] * 2
    raise OSError("a fault in the pipeline")


def test_batches_come_in_turn_and_outlive_their_workers():
    workers = Workers(numbered, 3)
    batches = [next(workers) for _ in range(20)]
    workers.close()
    workers.close()
    for i, batch in enumerate(batches):
        assert batch["number"] == i and batch["none"].shape == (0, 4) and batch["none"].dtype == np.float32
        assert batch["image"].shape == (2, 50, 3) and (batch["image"] == i).all()
        batch["image"] += 1  # the array is writable
    with pytest.raises(ValueError, match="closed"):
        next(workers)


def test_the_memory_of_a_batch_is_freed_with_it():
    def open_files():
        gc.collect()
        return sum("memfd:" in line for line in pathlib.Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/fd"))

    before = open_files()
    with_one = Workers(numbered, 1)
    for _ in range(30):
        batch = next(with_one)
    assert open_files()[0] == before[0] + 1
    image = batch.pop("image")
    del batch
    assert open_files()[0] == before[0] + 1 and image[0, 0, 0] == 29
    del image
    with_one.close()
    assert open_files() == before


def test_what_a_worker_raises_comes_after_its_batches_and_a_killed_one_is_named():
    workers = Workers(broken, 1)
    assert [int(next(workers)["number"][0]) for _ in range(2)] == [0, 0]
    with pytest.raises(OSError, match="a fault in the pipeline") as caught:
        next(workers)
    assert "in broken" in "".join(caught.value.__notes__)
    workers.close()
    workers = Workers(numbered, 2)
    next(workers)
    os.kill(workers._processes[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="Worker process was terminated unexpectedly with exit code -9"):
        for _ in range(20):
            next(workers)
    workers.close()


def test_without_anonymous_memory_the_pixels_go_through_the_socket():
    run_script(
        """
        import numpy as np, sys
        from vitlab.data import workers
        workers._HAS_ANONYMOUS_FILES = False
        import os, threading, socket
        here, there = socket.socketpair()
        batch = {"image": np.arange(3_000_000).astype(np.uint8), "none": np.zeros((0, 2))}
        threading.Thread(target=workers._send, args=(there, batch)).start()
        got = workers._receive(here)
        assert got.keys() == batch.keys() and all((got[name] == batch[name]).all() and got[name].shape == batch[name].shape for name in got)
        """
    )


RUN = """
import os, sys, time
from tests.data.test_workers import numbered
from vitlab.data.workers import Workers

if __name__ == "__main__":
    workers = Workers(numbered, 2)
    next(workers)
    print(*(process.pid for process in workers._processes), flush=True)
    if sys.argv[1] == "leave":
        sys.exit(3)
    while True:
        next(workers)
"""


@pytest.mark.parametrize("end", ["leave", "kill"])
def test_a_run_that_leaves_or_is_killed_with_its_group_leaves_nothing(tmp_path, end):
    (tmp_path / "script.py").write_text(RUN)
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "script.py"), end]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
    pids = [process.pid, *map(int, process.stdout.readline().split())]
    names = [] if end == "leave" else named_memory(pids)
    begun = time.monotonic()
    if end == "kill":
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=SECONDS) == {"leave": 3, "kill": -9}[end] and time.monotonic() - begun < 60
    assert len(pids) == 3 and names == []
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}/cmdline").exists() and pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline


def named_memory(pids: list[int]) -> list[str]:
    """Lists the files of /dev/shm that these processes have mapped or open.

    Files of other programs do not count.
    """
    found = []
    for pid in pids:
        found += [line for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm/" in line]
        found += [os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return [name for name in found if "/dev/shm/" in name]

import os
import re
import signal

import pytest

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, start, tiny_experiment, wait_for, wait_for_step, worker_processes
from vitlab import signals
from vitlab.signals import EXIT_STOPPED, StopRequest

# Each fault creates the file `here` once the process is where the signal is to reach it.
SLOW_COMPILATION = """
import pathlib, time
from vitlab.train import loop

compile_step = loop.compile_step

def slow(traced):
    pathlib.Path(__file__).with_name("here").touch()
    time.sleep(1)
    return compile_step(traced)

loop.compile_step = slow
"""

SLOW_EVALUATION = """
import pathlib, time
from vitlab.train import setup

make_eval_step = setup.make_eval_step

def make_slow(*arguments):
    eval_step = make_eval_step(*arguments)
    def slow(weights, batch):
        pathlib.Path(__file__).with_name("here").touch()
        time.sleep(1)
        return eval_step(weights, batch)
    return slow

setup.make_eval_step = make_slow
"""

# A thread that waits for a mutex runs no Python, and so no handler, whatever signals come.
COMPILATION_WITHOUT_END = """
import ctypes, pathlib
from vitlab.train import loop

def stuck(traced):
    pathlib.Path(__file__).with_name("here").touch()
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

loop.compile_step = stuck
"""


def started(tmp_path, fault, **changes):
    process = start(config_file(tmp_path, tiny_experiment(**changes), fault), tmp_path / "run")
    assert wait_for(lambda: (tmp_path / "here").exists() or process.poll() is not None), "not even begun"
    assert process.poll() is None, process.communicate()
    return process


def test_the_first_signal_asks_and_what_was_before_comes_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_for(lambda: stop.requested, seconds=5)
        assert wait_for(lambda: "SIGTERM: saving, then stopping" in capsys.readouterr().err, seconds=5)
    assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_warning_asks_however_often_it_comes_and_only_a_second_sigterm_ends(name, capsys, monkeypatch):
    ended, before = [], signal.signal(getattr(signal, name), signal.SIG_DFL)  # pytest itself may run under nohup
    monkeypatch.setattr(signals, "end_at_once", ended.append)
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), getattr(signal, name))
            assert wait_for(lambda: stop.requested, seconds=5)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_for(lambda: "SIGTERM: saving, then stopping; once more ends at once" in capsys.readouterr().err, seconds=5)
        assert not ended
        os.kill(os.getpid(), signal.SIGINT)
        assert wait_for(lambda: ended == [128 + signal.SIGINT], seconds=5)
    assert signal.signal(getattr(signal, name), before) is signal.SIG_DFL


def test_a_hangup_that_nohup_has_switched_off_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not wait_for(lambda: stop.requested, seconds=0.5)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_schedulers_warning_that_reaches_run_and_workers_saves_the_exact_step(tmp_path):
    config = config_file(tmp_path, tiny_experiment(duration="100000 steps", eval_every="100000 steps"))
    process = start(config, tmp_path / "run", "--config.data.num_workers=1")
    wait_for_step(process, tmp_path / "run", 8)
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU):
        for pid in (*worker_processes(process), process.pid):
            os.kill(pid, number)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STOPPED, errors
    assert checksums(tmp_path / "run", int(re.search(r"stopped at step (\d+)", errors)[1]))


def test_a_signal_during_compilation_saves_the_step_that_there_is_and_exits_with_42(tmp_path):
    process = started(tmp_path, SLOW_COMPILATION)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STOPPED, errors
    assert "stopped at step 0" in errors and checksums(tmp_path / "run", 0)


def test_a_signal_during_evaluation_ends_it_saves_the_exact_step_and_exits_with_42(tmp_path):
    process = started(tmp_path, SLOW_EVALUATION, eval_every="5 steps")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STOPPED, errors
    assert "stopped at step 5" in errors and checksums(tmp_path / "run", 5)
    assert "eval_top1" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_second_signal_ends_the_process_at_once_whatever_it_is_in(tmp_path):
    process = started(tmp_path, COMPILATION_WITHOUT_END)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: saving, then stopping" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    process.communicate()

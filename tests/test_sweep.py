import json
import os
import shlex
import signal
import sys
import threading
import time

import pytest

from tests.train.conftest import config_file, steps_recorded, tiny_experiment, wait_for
from vitlab import sweep
from vitlab.config import ConfigError
from vitlab.sweep import Job, values_of


def python(code):
    return (sys.executable, "-c", code)


def test_a_grid_is_run_and_done_runs_are_skipped(tmp_path, capfd):
    config = config_file(tmp_path, tiny_experiment(duration="2 steps", eval_every="2 steps", checkpoint_every="2 steps"))
    arguments = [f"--config={config}", f"--workdir={tmp_path}/sweep", "--grid.optimizer.peak_lr=[1e-3, 3e-4]", "--config.log_every=1 steps"]
    assert sweep.main(arguments) == 0
    for rate in (0.001, 0.0003):
        folder = tmp_path / "sweep" / f"optimizer.peak_lr={rate}"
        assert json.loads((folder / "config.json").read_text())["optimizer"]["peak_lr"] == rate and steps_recorded(folder) == 2
    capfd.readouterr()
    assert sweep.main(arguments) == 0
    assert capfd.readouterr().out.count("done before") == 2


def test_dry_run_prints_the_commands_and_makes_nothing(tmp_path, capsys):
    config = config_file(tmp_path, tiny_experiment())
    arguments = [f"--config={config}", f"--workdir={tmp_path}/a sweep", "--grid.augment.crop_scale=[(0.1, 1.0), (0.3, 1.0)]"]
    arguments += ["--grid.optimizer.name=[adamw, lion]", "--seeds=3", "--dry_run", "--config.batch_size=8", "--", "--smoke"]
    assert sweep.main(arguments) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 12 and not (tmp_path / "a sweep").exists()
    assert lines[0] == [
        *("python", "-m", "vitlab.train", f"--config={config}"),
        f"--workdir={tmp_path}/a sweep/augment.crop_scale=0.1_1.0,optimizer.name=adamw,seed=0",
        *("--config.batch_size=8", "--config.augment.crop_scale=(0.1, 1.0)", "--config.optimizer.name=adamw", "--config.seed=0", "--smoke"),
    ]
    assert len({tuple(line[4:5]) for line in lines}) == 12


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1e-3, 3e-4]", [1e-3, 3e-4]),
        ("[adamw, lion]", ["adamw", "lion"]),
        ("[True, false]", [True, False]),
        ("['a b', \"c\"]", ["a b", "c"]),
        ("[10 epochs, 20 epochs]", ["10 epochs", "20 epochs"]),
        ("[(1, 2), (3,)]", [(1, 2), (3,)]),
        ("[None, 0.9]", [None, 0.9]),
    ],
)
def test_values_are_pythons_and_words_need_no_quotes(text, values):
    assert values_of("x", text) == values


@pytest.mark.parametrize("text", ["1e-3", "1,2", "(1, 2)", "[]", "[,]", "", "[[adamw], lion]", "[1, 1]", "['a/b', 'a b']", "[" * 10_000])
def test_what_is_no_list_of_different_values_is_refused(text):
    with pytest.raises(ConfigError, match=r"--grid\.x="):
        values_of("x", text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is nothing to vary"),
        (["--seeds=0"], "--seeds=0 must be at least 1"),
        (["--seeds=2", "--grid.seed=[1]"], "not be given beside"),
        (["--grid.optimizer.peak_lr"], "has no values"),
        (["--grid.optimizer.peek_lr=[1]"], "unknown key optimizer.peek_lr"),
        (["--grid.batch_size=[16, many]"], "batch_size='many' must be int"),
        (["--grid.batch_size=[16]", "--config.batch_size=8"], "given both as --grid.batch_size and as --config.batch_size"),
        (["--grid.seed=[" + ",".join(map(str, range(200))) + "]", "--grid.batch_size=[" + ",".join(map(str, range(200))) + "]"], "40000"),
        (["--seed=3"], "unrecognized arguments"),
    ],
)
def test_wrong_grids_are_refused_before_anything_is_begun(tmp_path, arguments, words):
    config = config_file(tmp_path, tiny_experiment())
    with pytest.raises(ConfigError, match=words):
        sweep.main([f"--config={config}", f"--workdir={tmp_path}/sweep", *arguments])
    assert not (tmp_path / "sweep").exists()


def test_a_run_that_fails_does_not_end_the_others_and_is_tried_again(tmp_path, capfd):
    jobs = [Job(name="bad", command=python("raise SystemExit(1)")), Job(name="good", command=python("print('went')"))]
    assert sweep.run_all(jobs, tmp_path) == 1
    output, errors = capfd.readouterr()
    assert "went" in output and "1 of 2 runs failed: bad" in errors
    assert sweep.run_all([Job(name="bad", command=python("")), jobs[1]], tmp_path) == 0
    assert "went" not in capfd.readouterr().out


def test_a_stuck_run_is_tried_three_times(tmp_path):
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'tries')!r}).open('a').write('x'); raise SystemExit(43)"
    assert sweep.run_all([Job(name="stuck", command=python(code)), Job(name="next", command=python(""))], tmp_path) == 43
    assert (tmp_path / "tries").read_text() == "xxx" and not (tmp_path / "sweep.json").exists()


def test_a_run_that_was_stopped_stops_the_sweep(tmp_path):
    jobs = [Job(name="stopped", command=python("raise SystemExit(42)")), Job(name="next", command=python("1 / 0"))]
    assert sweep.run_all(jobs, tmp_path) == 42


def test_a_signal_is_passed_on_once_and_waited_for(tmp_path):
    code = f"""
import pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *a: heard.append(1))
signal.signal(signal.SIGINT, lambda *a: heard.append(2))
pathlib.Path({str(tmp_path / "begun")!r}).touch()
while not heard: time.sleep(0.01)
time.sleep(0.5)
pathlib.Path({str(tmp_path / "heard")!r}).write_text(str(heard))
sys.exit(42)
"""

    def send():
        wait_for((tmp_path / "begun").exists)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
    assert sweep.run_all([Job(name="x", command=python(code)), Job(name="y", command=python("1 / 0"))], tmp_path) == 42
    assert (tmp_path / "heard").read_text() == "[1]"


def test_a_damaged_list_of_done_runs_is_begun_anew(tmp_path):
    (tmp_path / "sweep.json").write_text("[")
    assert sweep.run_all([Job(name="x", command=python(""))], tmp_path) == 0
    assert list(json.loads((tmp_path / "sweep.json").read_text())) == ["x"]

"""Failing side outputs: stdout, stderr, a closed terminal, files that cannot be written.

None of them ends a run.
"""

import os
import pty
import select
import subprocess
import sys
import warnings

import jax
import pytest

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, tiny_experiment
from vitlab import cli
from vitlab.train.console import Console
from vitlab.train.loop import train
from vitlab.train.profile import Profile

SHORT = tiny_experiment(duration="24 steps", eval_every="12 steps")


def command(tmp_path, **changes):
    config = config_file(tmp_path, tiny_experiment(**{"duration": "24 steps", "eval_every": "12 steps", **changes}))
    return [sys.executable, "-m", "vitlab.train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]


def test_a_run_whose_output_goes_to_a_full_disk_is_done(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(tmp_path), stdout=full, stderr=full, timeout=SECONDS)
    assert done.returncode == 0 and checksums(tmp_path / "run", 24)


def test_a_run_whose_reader_has_gone_is_done(tmp_path):
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None and process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=SECONDS) == 0 and checksums(tmp_path / "run", 24), errors


def test_a_run_whose_terminal_is_closed_is_done(tmp_path):
    terminal, own = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path, duration="100 steps", eval_every="50 steps"), stdout=own, stderr=own, start_new_session=True
    )
    os.close(own)
    seen = b""
    while b"step 4/100" not in seen:
        assert select.select([terminal], [], [], SECONDS)[0], seen
        seen += os.read(terminal, 10_000)
    os.close(terminal)  # from here on every write fails with EIO
    assert process.wait(timeout=SECONDS) == 0
    assert b"\x1b[" in seen and checksums(tmp_path / "run", 100)  # a bar was drawn


def test_side_files_that_cannot_be_written_are_said_once_and_end_nothing(tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("tensorboard", "profile"):
        (run / name).write_text("in the way")
    for name in ("timing.jsonl", "bad_images.jsonl"):
        (run / name).mkdir()
    result = train(SHORT, run, profile=range(3, 5))
    assert result["step"] == 24 and checksums(run, 24)
    assert caplog.text.count("timing.jsonl or tensorboard/ cannot be written") == 1
    assert f"--profile: no trace can be written in {run / 'profile'}" in caplog.text


class Terminal:
    """A terminal that records everything written to it."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True


def test_warnings_and_errors_appear_above_the_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    cli.begin()
    with Console(total_steps=9) as console, warnings.catch_warnings():
        console.at(3)
        cli.logging.getLogger("vitlab.test").warning("an image is bad")
        warnings.simplefilter("always")
        console.line("step 3 of 9 :smile: [red]")
        console.at(4)
    for line in ("WARNING: an image is bad", "step 3 of 9 :smile: [red]"):
        before, found, after = screen.text.partition(line)
        assert found and after.startswith("\n"), screen.text
        assert before.rsplit("\n", 1)[-1].endswith("\x1b[2K")  # the bar's line was cleared first


def test_errors_that_go_to_a_file_stay_there(monkeypatch, tmp_path):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "errors").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        cli.begin()
        with Console(total_steps=9):
            cli.logging.getLogger("vitlab.test").warning("an image is bad")
    assert "bad" not in screen.text and (tmp_path / "errors").read_text() == "WARNING: an image is bad\n"


@pytest.mark.parametrize(
    ("done", "words"),
    [(range(1, 10), "steps 3 to 5 are traced in runs/a/profile"), (range(4, 5), "step 4 is traced"), (range(6, 9), "")],
)
def test_a_profile_says_where_it_is_or_that_it_missed(tmp_path, monkeypatch, caplog, done, words):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    said = []
    with Profile(tmp_path, range(3, 6), say=said.append, shown=tmp_path.__class__("runs/a/profile")) as profile:
        for step in done:
            profile.before(step)
            profile.after(step, {})
    assert [line.startswith(words) for line in said] == ([True] if words else [])
    assert ("--profile: steps 3 to 5 are not traced, since the run did none of them" in caplog.text) == (not words)

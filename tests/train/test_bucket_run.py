"""Runs in an emulated bucket: killed, refused, cut off from the network, and read."""

import contextlib
import dataclasses
import itertools
import json
import random
import signal

import pytest
from PIL import Image

from tests.emulator import BUCKET
from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, start, tiny_experiment, wait_for
from vitlab import buckets
from vitlab.buckets import run_path
from vitlab.compare import main as compare
from vitlab.config import ConfigError, DistillationConfig, LossConfig
from vitlab.evaluate.__main__ import main as evaluate
from vitlab.export.__main__ import main as export
from vitlab.files import exists, read_json
from vitlab.predict import main as predict
from vitlab.runs.loaded import load_run
from vitlab.train.__main__ import main as train_command
from vitlab.train.loop import train

STEPS = 24
_numbers = itertools.count()


def experiment(**changes):
    steps = {"duration": f"{STEPS} steps", "eval_every": "12 steps", "checkpoint_every": "8 steps"}
    return tiny_experiment(**steps | changes)


def new_folder():
    return run_path(f"gs://{BUCKET}/runs/{next(_numbers)}")


def steps_of(workdir) -> list[int]:
    folder = workdir / "checkpoints"
    found = folder.iterdir() if exists(folder) else ()
    return sorted(int(path.name) for path in found if exists(path / "commit_success.txt"))


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("on_disk") / "run"
    train(experiment(), workdir)
    return workdir


@pytest.fixture(scope="module")
def in_bucket(google):
    workdir = new_folder()
    train(experiment(), workdir)
    return workdir


def assert_same_run(workdir, other):
    assert checksums(workdir, STEPS) == checksums(other, STEPS)
    assert buckets.read(workdir / "metrics.jsonl") == (other / "metrics.jsonl").read_bytes()
    assert read_json(workdir / "config.json") == read_json(other / "config.json")


def test_a_run_in_a_bucket_is_that_on_disk_bit_by_bit(in_bucket, on_disk):
    assert_same_run(in_bucket, on_disk)
    assert steps_of(in_bucket) == sorted(int(path.name) for path in (on_disk / "checkpoints").iterdir()) == [12, 16, STEPS]
    names = {path.name for path in in_bucket.iterdir()}
    assert names == {".lock", ".probe-0", "checkpoints", "config.json", "data.json", "metrics.jsonl", "tensorboard", "timing.jsonl"}
    assert [json.loads(line)["step"] for line in buckets.read(in_bucket / "timing.jsonl").splitlines()] == [*range(4, STEPS + 1, 4), STEPS]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_and_the_same_command_again_gives_the_run_on_disk_bit_by_bit(google, tmp_path, on_disk, kills):
    workdir, config, rng, killed = new_folder(), config_file(tmp_path, experiment()), random.Random(), []
    while len(killed) < kills:
        process, count = start(config, workdir), rng.randint(0, MOST_OBJECTS)
        wait_for_claim(process, workdir)
        wait_for_objects(google, process, workdir, count)
        process.kill()
        _, errors = process.communicate(timeout=SECONDS)
        if process.returncode == 0:  # it was quicker
            assert_same_run(workdir, on_disk)
            workdir = new_folder()
            continue
        assert process.returncode == -signal.SIGKILL, errors
        killed.append((count, steps_of(workdir)))
    print(f"objects that each killed process had written, and the checkpoints left: {killed}")
    _, errors = (process := start(config, workdir)).communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert_same_run(workdir, on_disk)


MOST_OBJECTS = 70  # a run writes about 90 in its checkpoints


def wait_for_objects(google, process, workdir, count):
    """Waits until a process has written so many objects of checkpoints, or has ended."""
    folder = google.folder_of(workdir / "checkpoints")
    before, seen = files_in(folder), set()

    def enough():
        seen.update(files_in(folder) - before)
        return process.poll() is not None or len(seen) >= count

    wait_for(enough)


def files_in(folder) -> set[tuple[str, float]]:
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((str(path), path.stat().st_mtime))
    return found


def wait_for_claim(process, workdir):
    before = claim_of(workdir)
    wait_for(lambda: process.poll() is not None or claim_of(workdir) != before)


def claim_of(workdir) -> bytes:
    try:
        return buckets.read(workdir / ".lock")
    except FileNotFoundError:
        return b""


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on(google, tmp_path, capfd):
    workdir = new_folder()
    process = start(config_file(tmp_path, experiment(duration="100000 steps")), workdir)
    wait_for_claim(process, workdir)
    with pytest.raises(ConfigError, match=f"another process is training in {workdir}: process {process.pid} on"):
        train(experiment(), workdir)
    process.kill()
    process.communicate(timeout=SECONDS)


def test_a_network_that_is_dead_for_a_while_ends_no_run_and_loses_no_record(google, on_disk, monkeypatch, caplog):
    """The emulator is gone while steps 8 to 23 are done, and back when the last one is saved."""
    from vitlab.train import loop

    monkeypatch.setattr(buckets, "_UPLOAD_SECONDS", 0.2)
    monkeypatch.setattr(buckets, "ONCE", buckets.Patience(seconds=0.0, attempt=1.0))

    class Network(loop.Clock):
        steps = 0

        def waiting(self, call):
            self.steps += 1
            if self.steps == 8:
                google.stop()
            if self.steps == STEPS:
                google.start()
            return super().waiting(call)

    monkeypatch.setattr(loop, "Clock", Network)
    workdir = new_folder()
    try:
        train(experiment(), workdir)
    finally:
        google.stop()
        google.start()
    assert "the run goes on from memory" in caplog.text
    assert_same_run(workdir, on_disk)
    assert STEPS in steps_of(workdir)


def test_a_run_in_a_bucket_is_evaluated_compared_exported_asked_and_loaded(in_bucket, on_disk, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate([f"--workdir={in_bucket}", "--name=again", "--report"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert read_json(in_bucket / "evaluation.json") == read_json(in_bucket / "evaluations" / "again" / "evaluation.json") == found
    assert buckets.read(in_bucket / "evaluations" / "again" / "classes.csv").startswith(b"class,images,right")
    assert compare([str(in_bucket), str(on_disk)]) == 0
    assert f"gs://{BUCKET}/runs" in capfd.readouterr().out
    assert export([f"--workdir={in_bucket}", "--format=safetensors", f"--output={tmp_path / 'model.safetensors'}"]) == 0
    capfd.readouterr()
    Image.new("L", (28, 28), 200).save(tmp_path / "picture.png")
    assert predict([f"--workdir={in_bucket}", str(tmp_path / "picture.png")]) == 0
    assert "picture.png" in capfd.readouterr().out
    assert load_run(str(in_bucket)).step == STEPS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors", "picture.png"], (
        "no folder named gs: was made"
    )


def test_a_run_in_a_bucket_teaches_another_and_is_its_start(in_bucket, on_disk, tmp_path, caplog):
    loss = LossConfig(distillation=DistillationConfig(teacher=str(in_bucket)))
    model = dataclasses.replace(experiment().model, in_channels=1, weights=f"{in_bucket}@16")
    result = train(experiment(duration="2 steps", loss=loss, model=model), tmp_path / "student")
    assert result["step"] == 2
    assert f"training begins with {in_bucket} (step 16)" in caplog.text


def test_a_bucket_that_is_not_there_is_one_line(google, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_file(tmp_path, experiment())
    with pytest.raises(ConfigError, match=r"run folder gs://nowhere/run is not writable: .*is nowhere its name"):
        train_command([f"--config={config}", "--workdir=gs://nowhere/run"])
    with pytest.raises(ConfigError, match="gs://nowhere/run is no run folder"):
        evaluate(["--workdir=gs://nowhere/run"])
    with pytest.raises(ConfigError, match="Orbax writes checkpoints to local paths and gs:// only"):
        train_command([f"--config={config}", "--workdir=s3://bucket/run"])
    assert [path.name for path in tmp_path.iterdir()] == ["config_file.py"]


def test_a_run_that_was_copied_to_amazon_is_read_there(amazon, on_disk):
    import s3fs

    s3fs.S3FileSystem().put(str(on_disk), f"{BUCKET}/copied/run", recursive=True)
    run, local = load_run(f"s3://{BUCKET}/copied/run"), load_run(on_disk)
    assert run.step == STEPS and run.class_names == local.class_names
    assert exists(run_path(f"s3://{BUCKET}/copied/run/checkpoints/{STEPS}"))

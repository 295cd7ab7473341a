"""The command that writes shards: one process per folder, kills at any moment, mistakes."""

import contextlib
import errno
import fcntl
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.data.conftest import write_tree
from tests.processes import SECONDS
from vitlab.config import ConfigError
from vitlab.data.lock import LOCK, locked
from vitlab.data.prepare import main, prepare, verify
from vitlab.data.shards import open_shards

COMMAND = [sys.executable, "-m", "vitlab.data.prepare"]


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    write_tree(tmp_path / "images", ("ant", "bee"), 10)
    return tmp_path / "images"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refused(process: subprocess.Popen, *words: str) -> bool:
    """Whether the command ended with exit code 2 and one line that has the words."""
    _, errors = process.communicate(timeout=SECONDS)
    one_line = errors.startswith("error: ") and errors.count("\n") == 1
    return process.returncode == 2 and one_line and all(word in errors for word in words)


def test_a_folder_that_is_being_written_is_refused_with_who_writes_it(images, tmp_path):
    with locked(images):
        with pytest.raises(ConfigError, match=f"images is being written by process {os.getpid()} on .*; wait for it, or give another"):
            prepare(str(images), images)
        assert refused(start(images, images), f"is being written by process {os.getpid()}")
    assert not (images / LOCK).exists()
    prepare(str(images), tmp_path / "shards")
    assert sorted(contents(tmp_path / "shards")) == ["index.json", "train-00000-of-00001.array_record"]


def test_the_lock_of_a_killed_process_holds_nobody_up(images, tmp_path):
    (tmp_path / "shards").mkdir()
    code = "import sys, time; from vitlab.data.lock import locked\nwith locked(sys.argv[1]): print('locked', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "shards")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ConfigError, match="is being written by process"):
        prepare(str(images), tmp_path / "shards")
    process.kill()
    process.communicate()
    assert (tmp_path / "shards" / LOCK).exists()
    prepare(str(images), tmp_path / "shards")
    assert not (tmp_path / "shards" / LOCK).exists()


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, flock, taken = tmp_path / LOCK, fcntl.flock, []

    def flock_after_the_owner_left(descriptor, operation):
        if not taken:
            path.unlink()
        taken.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_owner_left)
    with locked(tmp_path):
        assert len(taken) == 2 and path.exists()
        with pytest.raises(ConfigError, match="is being written"), locked(tmp_path):
            pass


@pytest.mark.parametrize("left", ["index.json.tmp", ".lock", "train-00001-of-00003.array_record.tmp", "train-00002-of-00003.array_record"])
@pytest.mark.parametrize("index", [None, b"", b'{"version": 1, "cl', b"[]", b"[" * 100_000, b"\xff"])
def test_what_a_killed_process_left_is_taken_over(images, tmp_path, left, index):
    prepare(str(images), tmp_path / "whole", shard_size=7)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / left).write_bytes(b"half of it")
    if index is not None:
        (folder / "index.json").write_bytes(index)
    prepare(str(images), folder, shard_size=7)
    if left.endswith("record.tmp"):
        assert not (folder / left).exists()
    assert contents(folder) == contents(tmp_path / "whole")
    (folder / "index.json").write_bytes(b"damaged")
    (folder / "mine.txt").write_text("not of the plan")
    with pytest.raises(ConfigError, match=r"index.json is damaged, and mine.txt lies beside it; give another folder"):
        prepare(str(images), folder, shard_size=7)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"train-00000-of-00001.array_record"', '"../images/ant/0.png"'),
        ('"train-00000-of-00001.array_record"', '"/etc/hostname"'),
        ('"records": 20', '"records": -1'),
        ('"records": 20', '"records": "20"'),
        ('"channels": 3', '"channels": 0'),
        ('"ant"', "3"),
        ('"size": ', '"size": -'),
        ('"train": [', '"train": [], "other": ['),
    ],
)
def test_an_index_that_names_what_cannot_be_is_damaged(images, tmp_path, old, new):
    prepare(str(images), tmp_path / "shards")
    path = tmp_path / "shards" / "index.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match="index.json is damaged; run python -m vitlab.data.prepare SRC"):
        open_shards(str(tmp_path / "shards"), "train")


def test_an_index_of_another_version_is_refused_as_that(images, tmp_path):
    prepare(str(images), tmp_path / "shards")
    path = tmp_path / "shards" / "index.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 3'))
    for use in (lambda: open_shards(str(tmp_path / "shards"), "train"), lambda: prepare(str(images), tmp_path / "shards")):
        with pytest.raises(ConfigError, match="index.json has version=3, not 1 or 2; write the shards anew into another folder"):
            use()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shrt_side=3"], "unrecognized arguments: --shrt_side=3; did you mean --short_side"),
        (["--shard_size=1e3"], "argument --shard_size: invalid int value: '1e3'"),
        (["--shard_size=0"], "must be at least 1"),
        (["--num_threads=-1"], "--num_threads=-1"),
        (["--split=../images"], "must be the name of a split"),
        (["--split=train[:50%]"], "slices are taken when the shards are read"),
        (["--split=tran"], 'has no folder "tran"'),
        (["--first_label=1"], "--first_label is for TFRecord files: give --tfrecord too"),
        (["--tfrecord", "--first_label=99999999999999999999"], r"--first_label=99999999999999999999 must be in \[0, 2\*\*31\)"),
        (["--tfrecord"], "holds no TFRecord file"),
        (["--verify"], "leave SRC out"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(images, tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        main([str(images), str(tmp_path / "shards"), *arguments])
    assert not (tmp_path / "shards").exists()


def test_places_that_cannot_be_used_are_one_line(images, tmp_path):
    file = images / "ant" / "0.png"
    for source, shards, words in (
        (images, file, "cannot be made: File exists"),
        (images, file / "below", "cannot be made: Not a directory"),
        (images, f"{tmp_path}/\0", "holds a NUL"),
        (images, tmp_path / os.fsdecode(b"b\xff"), "the path is not UTF-8; rename the folder"),
        (images, "http://example.org/shards", "cannot be read: give a path here, or one at gs://"),
        (file, tmp_path / "shards", "is no folder"),
        (tmp_path / "none", tmp_path / "shards", "does not exist"),
        (tmp_path / "none.csv", tmp_path / "shards", "does not exist"),
        (images, "/proc/none", "cannot be made: No such file or directory"),
        (images, "/proc", "is not writable"),
    ):
        with pytest.raises(ConfigError, match=words):
            main([str(source), str(shards)])
    with pytest.raises(ConfigError, match="has no index.json"):
        main(["--verify", str(images)])


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(images, tmp_path):
    sizes = {path.name: path.stat().st_size for path in (images / "ant").iterdir()}
    limit = 70_000  # bytes per file, above one shard's size and below that of a thousand copies of all images
    for i in range(120):
        for name in sizes:
            os.link(images / "ant" / name, images / "ant" / f"{i}_{name}")
    code = (
        "import resource, signal, sys; from vitlab import cli; from vitlab.data.prepare import main\n"
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
        "cli.run(main)"
    )
    command = [sys.executable, "-c", code, str(images), str(tmp_path / "shards")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert refused(process, "cannot be written: ", "train-00000-of-00001.array_record.tmp", "File too large", "run the same command again")
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["index.json"]
    prepare(str(images), tmp_path / "shards")
    verify(tmp_path / "shards")


def test_what_the_system_refuses_to_write_is_one_line_and_finished_shards_are_kept(images, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def refuse_the_seventh(descriptor):
        calls.append(descriptor)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_the_seventh)
    with pytest.raises(ConfigError, match="shards cannot be written: No space left on device; .* finished shards are kept"):
        prepare(str(images), tmp_path / "shards", shard_size=2)
    kept = {path.name: path.stat().st_mtime_ns for path in sorted((tmp_path / "shards").glob("train*"))}
    prepare(str(images), tmp_path / "shards", shard_size=2)
    assert len(kept) == 3 and all((tmp_path / "shards" / name).stat().st_mtime_ns == time for name, time in list(kept.items())[:2])
    verify(tmp_path / "shards")


def test_help_shows_examples(capsys):
    with contextlib.suppress(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "examples:\n  python -m vitlab.data.prepare /data" in text and "--follow_outside" in text


@pytest.mark.slow
def test_of_pairs_at_once_one_is_refused_or_both_succeed(images, tmp_path):
    prepare(str(images), tmp_path / "whole", shard_size=3)
    outcomes = []
    for i in range(20):
        folder = tmp_path / f"shards{i}"
        pair = [start(images, folder, "--shard_size=3") for _ in range(2)]
        codes = []
        for process in pair:
            _, errors = process.communicate(timeout=SECONDS)
            codes.append(process.returncode)
            assert process.returncode == 0 or (process.returncode == 2 and "is being written by" in errors and errors.count("\n") == 1)
        outcomes.append(sorted(codes))
        assert contents(folder) == contents(tmp_path / "whole")
        verify(folder)
    assert len(outcomes) == 20 and all(codes[0] == 0 for codes in outcomes)
    print(f"{sum(codes == [0, 2] for codes in outcomes)} of 20 pairs: one refused")


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_ends_in_the_same_bytes(images, tmp_path):
    prepare(str(images), tmp_path / "whole", shard_size=1)
    rng, folder, kills = random.Random(0), tmp_path / "shards", 0
    for _ in range(40):
        process = start(images, folder, "--shard_size=1", "--num_threads=1")
        while not folder.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.06)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=SECONDS)
        kills += process.returncode == -signal.SIGKILL
        if rng.random() < 0.25:  # start again from nothing
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    assert kills > 20
    assert main([str(images), str(folder), "--shard_size=1"]) == 0
    assert contents(folder) == contents(tmp_path / "whole")
    print(f"{kills} kills")

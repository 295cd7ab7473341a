"""Run folders that are unusable or damaged: one line of message, and nothing is changed."""

import json
import os
import random
import subprocess
import sys

import pytest

from tests.processes import SECONDS
from tests.train.conftest import tiny_experiment
from vitlab.config import ConfigError
from vitlab.parallel.mesh import make_mesh
from vitlab.runs import folder
from vitlab.runs.trained import from_run

DATA = folder.DataInfo(fingerprint="abc", num_examples=64, channels=1, class_names=("zero", "één"))
DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
NESTED = b'{"model": ' + b"[" * 500 + b"]" * 500 + b"}"


def claim(path):
    return folder.claim(path, tiny_experiment(), DATA)


@pytest.fixture
def run(tmp_path):
    with claim(tmp_path / "run") as own:
        folder.write(own, tiny_experiment(), DATA)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 2, "train_loss": 1.5}\n{"step": 4, "eval_top1": 0.5}\n')
    return tmp_path / "run"


def everything(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file() and p.name != ".lock"}


def refused(path):
    """Returns the message that refuses the folder, to training and to readers alike."""
    before = everything(path)
    with pytest.raises(ConfigError) as training:
        claim(path)
    assert everything(path) == before
    message = str(training.value)
    assert "\n" not in message and len(message) < 1000
    return message


def test_what_is_written_is_read(run):
    assert folder.read(run) == (tiny_experiment(), DATA)
    with claim(run):
        pass


@pytest.mark.parametrize("name", ["config.json", "data.json"])
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"1" * 5000,
        DEEP,
        NESTED,
        b"{}\x00",
        b'{"seed": 1e999}',
        b'{"seed": NaN}',
        b'{"a":{}}',
    ],
    ids=["empty", "no utf-8", "cut", "list", "null", "text", "huge", "deep", "nested", "nul", "inf", "nan", "unknown key"],
)
def test_a_damaged_file_is_one_line_with_the_remedy(run, name, damage):
    (run / name).write_bytes(damage)
    message = refused(run)
    assert f"{run / name} is damaged or not of this version" in message and "restore it from a copy, or begin anew" in message
    with pytest.raises(ConfigError, match="is damaged"):
        folder.read(run)


@pytest.mark.parametrize(
    "change",
    [{"class_names": "ab"}, {"class_names": [1, 2]}, {"channels": "1"}, {"num_examples": True}, {"fingerprint": None}, {"more": 1}],
)
def test_wrong_types_and_unknown_keys_of_the_data_are_named(run, change):
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(data | change))
    assert next(iter(change)) in refused(run)
    del data["channels"]
    (run / "data.json").write_text(json.dumps(data))
    assert "missing or unknown: channels" in refused(run)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 3, "tr', "Unterminated"),
        (b"\xff\x00", "can't decode"),
        (b"[1]", "no group of values"),
        (b"{}", "no group of values"),
        (b'{"step": "3"}', "no group of values"),
        (b'{"step": true}', "no group of values"),
        (b'{"step": -1}', "no group of values"),
        (b'{"step": 3, "eval_top1": "best"}', "eval_top1 is no number"),
        (b'{"step": 3, "eval_top1": null}', "eval_top1 is no number"),
        (b'{"step": 3, "eval_top1": 1' + b"0" * 400 + b"}", "eval_top1 is no number"),
        (b'{"step": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
    ],
)
def test_a_damaged_line_in_the_middle_of_the_records_is_named_with_the_remedy(run, line, reason):
    first, second = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(b"\n".join([first, line, second, b""]))
    message = refused(run)
    assert "metrics.jsonl of the run is damaged in line 2" in message and reason in message
    assert "remove that line, or move the file away" in message
    (run / "metrics.jsonl").write_bytes(b"\n".join([first, second, line]))  # a last line that was cut off does not count
    with claim(run):
        pass


@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl"])
def test_flipped_bytes_never_give_a_traceback(run, name):
    rng, whole = random.Random(0), (run / name).read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 20))):
            start = rng.randrange(len(data))
            data[start : start + rng.choice((0, 1, 1, 30))] = rng.choice(
                (b"", b"\x00", b"\xff", b"[", b'"', b"1e999", b"9" * 4400, rng.randbytes(3))
            )
        (run / name).write_bytes(data)
        try:
            claim(run).__exit__()
        except ConfigError as error:
            assert len(str(error)) < 3000


@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl", "checkpoints"])
@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link"])
def test_what_is_in_the_way_in_a_run_folder_is_one_line(run, name, kind):
    path = run / name
    path.rmdir() if name == "checkpoints" else path.unlink()
    {"file": path.touch, "folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(path)}[kind]()
    fine = (name, kind) in {("checkpoints", "folder"), ("metrics.jsonl", "file"), ("config.json", "link")}
    if fine:
        with claim(run):
            return
    assert name in refused(run)


def test_a_run_folder_that_is_a_file_or_below_one_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file is not writable: File exists \(a file where a folder should be\)"):
        claim(tmp_path / "file")
    with pytest.raises(ConfigError, match="is not writable: Not a directory"):
        claim(tmp_path / "file" / "run")
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(ConfigError, match="is no run folder"):
            from_run(path, make_mesh())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_folder_whose_name_is_no_text_is_refused_before_it_is_made(tmp_path):
    path = tmp_path / os.fsdecode(b"run\xff")
    for use in (claim, folder.read):
        with pytest.raises(ConfigError, match=r"run\\udcff must have a name in UTF-8"):
            use(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o755)
    code = (
        "import sys, pathlib; from tests.runs.test_folder import claim\n"
        "try: claim(pathlib.Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.setuid(65534)\n{code}", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if "ModuleNotFoundError" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("nobody may not read this checkout")
    assert done.stdout == f"ConfigError the run folder {tmp_path}/run is not writable: Permission denied\n", done.stderr


def test_what_killed_writers_have_left_is_removed_when_the_run_goes_on(run):
    leftovers = ["config.json.tmp", "metrics.jsonl.01234567.tmp", "checkpoints/.probe-3.tmp"]
    for name in leftovers:
        (run / name).write_text("half")
    for name in ("checkpoints/.probe-0", "checkpoints/20.orbax-checkpoint-tmp"):
        (run / name).mkdir()
        (run / name / "inner").write_text("half")
    with claim(run):
        assert not any((run / "checkpoints").iterdir())
    assert {p.name for p in run.iterdir()} == {".lock", "checkpoints", "config.json", "data.json", "metrics.jsonl"}

"""Objects, versions, growing lists and claims in emulated buckets of Google and Amazon."""

import importlib.util
import itertools
import json
import logging
import os
import pathlib
import time

import pytest
from etils import epath

from tests.emulator import BUCKET
from vitlab import buckets
from vitlab.buckets import Lines, Mirror, in_bucket, run_path
from vitlab.config import ConfigError
from vitlab.files import exists, open_to_append, read_json, remove, whole_lines, write_atomically
from vitlab.runs import lease
from vitlab.runs.claim import FolderLostError
from vitlab.runs.lease import BucketClaim
from vitlab.runs.records import Records

_numbers = itertools.count()


@pytest.fixture(params=["gs", "s3"])
def folder(request) -> epath.Path:
    request.getfixturevalue("google" if request.param == "gs" else "amazon")
    return run_path(f"{request.param}://{BUCKET}/folder{next(_numbers)}")


def names(folder: epath.Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if exists(folder) else set()


def test_an_object_is_replaced_whole_read_and_deleted(folder):
    path = folder / "config.json"
    assert in_bucket(path) and not exists(path)
    with pytest.raises(FileNotFoundError, match=f"is {BUCKET} its name"):
        read_json(path)
    for value in ({"a": 1}, {"b": [2.5, "ä"]}):
        write_atomically(path, json.dumps(value))
        assert exists(path) and read_json(path) == value
    assert names(folder) == {"config.json"}
    remove(folder)
    assert not exists(path)
    remove(folder)


def test_a_write_that_depends_on_a_version_that_has_gone_is_refused(folder):
    path = folder / "one"
    first = buckets.replace(path, b"1", None)
    for version in (None, "1"):
        with pytest.raises(FileExistsError):
            buckets.replace(path, b"other", version)
    second = buckets.replace(path, b"2", first)
    with pytest.raises(FileExistsError):
        buckets.replace(path, b"3", first)
    assert buckets.read_version(path) == (b"2", second)
    third = buckets.replace(path, b"", second)
    assert buckets.read_version(path) == (b"", third)
    second = buckets.replace(path, b"2", third)
    assert buckets.replace(path, b"2", first) == second, "the answer to the write was lost, and it is sent again"


def test_lines_of_a_list_are_there_once_it_is_synced_and_a_cut_one_is_dropped(folder):
    path = folder / "timing.jsonl"
    write_atomically(path, '{"step": 1}\n{"ste')
    with open_to_append(path) as lines:
        lines.write('{"step": 2}\n')
        assert list(whole_lines(path)) == [b'{"step": 1}']
        lines.sync()
        assert list(whole_lines(path)) == [b'{"step": 1}', b'{"step": 2}']
        lines.write('{"step": 3}\n')
    assert [json.loads(line)["step"] for line in whole_lines(path)] == [1, 2, 3]


def test_the_background_writes_a_list_that_grows(folder, monkeypatch):
    monkeypatch.setattr(buckets, "_UPLOAD_SECONDS", 0.05)
    with Lines(folder / "timing.jsonl", "") as lines:
        lines.write("1\n")
        deadline = time.monotonic() + 60
        while list(whole_lines(folder / "timing.jsonl")) != [b"1"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(whole_lines(folder / "timing.jsonl")) == [b"1"]


def test_of_two_processes_that_write_one_list_the_later_one_stays(folder):
    older = Lines(folder / "metrics.jsonl", "a\n")
    with Lines(folder / "metrics.jsonl", "b\n"):
        older.write("c\n")
        with pytest.raises(OSError, match="another process writes it"):
            older.close()
    assert list(whole_lines(folder / "metrics.jsonl")) == [b"b"]


def test_records_are_cut_back_to_the_step_of_the_checkpoint_and_safe_once_synced(folder):
    path = folder / "metrics.jsonl"
    records = Records(path, step=0)
    for step in (2, 4, 6):
        records.write(step, {"train_loss": 1 / step})
    records.sync()
    records.close()
    whole = buckets.read(path)
    records = Records(path, step=4)
    assert [line["step"] for line in records.lines] == [2, 4]
    assert [json.loads(line)["step"] for line in whole_lines(path)] == [2, 4]
    records.write(6, {"train_loss": 1 / 6})
    records.close()
    assert buckets.read(path) == whole


def test_a_local_folder_of_files_is_mirrored(folder):
    with Mirror(folder / "tensorboard") as mirror:
        (mirror.folder / "a").write_text("1")
        (mirror.folder / "b").mkdir()
        (mirror.folder / "b" / "c").write_text("2")
    assert not mirror.folder.exists()
    assert buckets.read(folder / "tensorboard" / "a") == b"1" and buckets.read(folder / "tensorboard" / "b" / "c") == b"2"


@pytest.fixture
def claim(folder):
    with BucketClaim(folder) as own:
        own.lock()
        yield own


def test_two_runs_cannot_claim_one_folder(claim):
    claim.check()
    with BucketClaim(claim.path) as other, pytest.raises(ConfigError, match=f"is training in {claim.path}: process {os.getpid()} on"):
        other.lock()
    claim.check_place()
    assert not claim.lost()


def test_a_folder_is_free_once_its_run_has_ended(folder):
    for _ in range(2):
        with BucketClaim(folder) as own:
            own.lock()
            own.check()


def test_a_process_of_this_machine_that_has_died_is_followed_at_once(folder):
    dead = {**lease._this_process(), "process": 2**22 + 1, "started": "1"}
    write_atomically(folder / ".lock", json.dumps(dead))
    with BucketClaim(folder) as own:
        own.lock()
        own.check()


def test_a_process_elsewhere_is_followed_only_when_it_no_longer_renews_its_claim(folder, monkeypatch, caplog):
    monkeypatch.setattr(lease, "_LEASE_SECONDS", 0.3)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.05)
    elsewhere = {"process": 7, "host": "other\x1b[2J", "boot": "another", "space": "one"}
    write_atomically(folder / ".lock", json.dumps(elsewhere))
    with BucketClaim(folder) as own:
        own.lock()
        own.check()
    assert r"was held by process 7 on other\x1b[2J" in caplog.text

    def renewed(*_):
        write_atomically(folder / ".lock", json.dumps(elsewhere | {"renewals": time.monotonic()}))

    renewed()
    monkeypatch.setattr(lease.time, "sleep", renewed)
    with BucketClaim(folder) as own, pytest.raises(ConfigError, match="another process is training"):
        own.lock()


def test_a_run_whose_claim_was_taken_over_or_deleted_stops(claim):
    there = buckets.read(claim.path / ".lock")
    write_atomically(claim.path / ".lock", json.dumps({"process": 7}))
    with pytest.raises(FolderLostError, match="another process has taken it over"):
        claim.check()
    assert claim.lost() and buckets.read(claim.path / ".lock") != there
    with BucketClaim(claim.path / "again") as own:
        own.lock()
        remove(claim.path / "again")
        with pytest.raises(FolderLostError, match="it was deleted"):
            own.check()
    assert not exists(claim.path / "again")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (pathlib.Path("gs://bucket/run"), "must be a local path, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"),
        ("az://bucket/run", "must be a local path"),
        ("http://bucket/run", "must be a local path"),
        ("gs://", "must name a bucket"),
        ("gs://bucket", "must name a bucket .* and a folder in it"),
        ("gs://bucket/", "must name a bucket"),
        ("gs://Bucket Of Mine/run", "must name a bucket"),
    ],
)
def test_a_name_that_is_none_of_a_folder_in_a_bucket_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        run_path(name)


def test_without_its_package_a_bucket_is_refused_and_no_local_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs gcsfs: pip install "vitlab\[cloud\]"'):
        run_path("gs://bucket/run")
    assert not list(tmp_path.iterdir())


def test_a_local_path_stays_one():
    for name in ("runs/a", "runs/gs:", pathlib.Path("runs/a"), epath.Path("runs/a")):
        path = run_path(name)
        assert isinstance(path, pathlib.Path) and path == pathlib.Path(name) and not in_bucket(path)


@pytest.mark.parametrize("kind", ["HttpError", "NoCredentialsError"])
def test_what_a_bucket_refuses_is_told_once_with_the_remedy(google, monkeypatch, kind):
    def refuse(*_, **__):
        raise type(kind, (Exception,), {"code": 401})("Anonymous caller does not have storage.objects.get access")

    monkeypatch.setattr(buckets.fsspec_backend.fs("gs://x"), "cat_file", refuse)
    with pytest.raises(PermissionError, match="refuses this user .*Anonymous caller.*gcloud auth application-default login"):
        buckets.read(run_path("gs://bucket/run"))


def test_a_bucket_that_does_not_answer_is_asked_again_later_and_later(google, monkeypatch, caplog):
    answers, pauses = iter([ConnectionError("dead"), TimeoutError(), ConnectionError("dead"), b"whole"]), []

    def cat_file(*_, **__):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(buckets.fsspec_backend.fs("gs://x"), "cat_file", cat_file)
    monkeypatch.setattr(buckets.time, "sleep", pauses.append)
    with caplog.at_level(logging.WARNING):
        assert buckets.read(run_path("gs://bucket/run")) == b"whole"
    assert pauses == [1.0, 2.0, 4.0] and caplog.text.count("cannot be reached (dead); tried again for 300 s") == 1


def test_the_network_is_given_up_after_the_time_that_the_caller_has(google, monkeypatch):
    monkeypatch.setattr(buckets.fsspec_backend.fs("gs://x"), "cat_file", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("dead")))
    with pytest.raises(OSError, match="the bucket cannot be reached: dead"):
        buckets.read(run_path("gs://bucket/run"), buckets.ONCE)

import errno
import json
import logging
import time

import pytest

from vitlab.runs.records import Records
from vitlab.train.side_logs import SideLogs


class FullDisk:
    """A file whose every write fails."""

    def __init__(self, file):
        self.close, self.fileno = file.close, file.fileno

    def write(self, text=""):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = write


def test_lines_after_the_step_and_a_cut_line_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path, step=0)
    for step in (2, 4, 6):
        records.write(step, {"train_loss": 1 / step})
    records.close()
    whole = path.read_text()
    path.write_text(whole + '{"step": 7, "tr')
    records = Records(path, step=4)
    assert [line["step"] for line in records.lines] == [2, 4]
    assert records.at(4, "train_loss") == {"step": 4, "train_loss": 0.25} and records.at(4, "eval_top1") is None
    records.write(6, {"train_loss": 1 / 6})
    records.close()
    assert path.read_text() == whole


def test_what_a_full_disk_refuses_is_written_once_it_can_be(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    records = Records(path, step=0)
    records.write(1, {"train_loss": 1.0})
    records._file = FullDisk(records._file)
    for step in (2, 3):
        records.write(step, {"train_loss": 0.5})
    assert caplog.text.count("metrics.jsonl cannot be written (No space left on device)") == 1
    with monkeypatch.context() as patch:
        patch.setattr("vitlab.runs.records.write_atomically", lambda *_: FullDisk.write(None))
        with pytest.raises(OSError, match="No space"):
            records.sync()
    records.sync()
    records.write(4, {"train_loss": 0.25})
    records.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_file_that_was_removed_or_replaced_is_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path, step=0)
    for step, harm in ((1, path.unlink), (2, lambda: path.rename(tmp_path / "old")), (3, lambda: path.with_name("old").replace(path))):
        records.write(step, {"train_loss": 0.5})
        records.sync()
        harm()
    records.sync()
    records.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_the_timing_has_the_time_and_loses_a_line_that_was_cut_off(tmp_path):
    (tmp_path / "timing.jsonl").write_text('{"step": 1}\n{"ste')
    logs, begun = SideLogs(tmp_path, step=1), time.time()
    logs.timing(2, {"eta": 1.0})
    logs.close()
    first, second = map(json.loads, (tmp_path / "timing.jsonl").read_text().splitlines())
    assert first == {"step": 1} and second["step"] == 2 and abs(second["time"] - begun) < 60


def test_logs_that_are_lost_do_not_end_the_run(tmp_path, caplog):
    logs = SideLogs(tmp_path, step=0)
    logs._timing = FullDisk(logs._timing)
    with caplog.at_level(logging.ERROR):
        for step in range(30):
            logs.timing(step, {"eta": 1.0})
            logs.scalars(step, {"train_loss": 0.5})
    logs.close()
    assert caplog.text.count("cannot be written") == 1
    assert b"train/loss" in next((tmp_path / "tensorboard").iterdir()).read_bytes()

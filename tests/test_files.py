import json
import os
import threading
import time

import pytest

from vitlab.files import open_to_append, read_json, remove, whole_lines, write_atomically


def test_a_file_is_replaced_at_once_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.json"
    for text in ("old", "new"):
        write_atomically(path, text)
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udcff")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_sync_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_killed_writers_have_left_is_removed_and_what_others_write_is_not(tmp_path):
    path = tmp_path / "a[1].json"
    names = ("a[1].json.tmp", "a[1].json.0123abcd.tmp", "a[1].json.89abcdef.tmp", "a1.json.tmp")
    for name in names:
        (tmp_path / name).write_text("half")
    hour_ago = time.time() - 3600
    for name in names[:2]:
        os.utime(tmp_path / name, (hour_ago, hour_ago))
    (tmp_path / "a[1].json.folder.tmp").mkdir()
    write_atomically(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a1.json.tmp", "a[1].json", "a[1].json.89abcdef.tmp", "a[1].json.folder.tmp"]


def test_writers_at_the_same_time_each_write_a_whole_file(tmp_path):
    path, texts = tmp_path / "a.json", [json.dumps([i] * 5000) for i in range(8)]
    threads = [threading.Thread(target=lambda text=text: [write_atomically(path, text) for _ in range(10)]) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert path.read_text() in texts and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{", b"[" * 100_000, b"1" * 5000, b"{}\x00", b'\xef\xbb\xbf{"a": 1}', b"nul", "é".encode("latin1")]
)
def test_a_damaged_json_file_is_a_value_error(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, reason in (("fifo", "no regular file"), ("zero", "no regular file"), (".", "Is a directory")):
        with pytest.raises(OSError, match=reason):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "lines"), [(b"", []), (b"a", []), (b"a\nb", [b"a"]), (b"a\nb\n", [b"a", b"b"]), (b"a\n\x85\r\n", [b"a", b"\x85\r"])]
)
def test_a_last_line_that_was_cut_off_is_left_out_and_removed_before_the_next_is_written(tmp_path, data, lines):
    path = tmp_path / "a.jsonl"
    assert list(whole_lines(path)) == []
    path.write_bytes(data)
    assert list(whole_lines(path)) == lines
    with open_to_append(path) as file:
        file.write("c\n")
    assert path.read_bytes() == b"".join(line + b"\n" for line in (*lines, b"c"))


def test_files_folders_and_links_are_removed_and_not_what_links_lead_to(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("link", "dangling", "folder", "nothing"):
        remove(tmp_path / name)
    assert [p.name for p in tmp_path.rglob("*")] == ["target", "file"]

"""CSVs of path,label and class lists."""

import os
import re
import time

import numpy as np
import pytest

from vitlab.config import ConfigError, DataConfig
from vitlab.data import open_source
from vitlab.data.image_folder import open_image_folder
from vitlab.data.prepare import main, prepare
from vitlab.data.shards import open_shards


def open_csv(path, split: str = "train"):
    return open_source(DataConfig(source="image_folder", data_dir=str(path), train_split=split), train=True)


@pytest.fixture
def listing(tree):
    path = tree.parent / "images.csv"
    path.write_text("path,label\n" + "".join(f"images/{name}/{i}.png,{name}\n" for name in ("bee", "ant") for i in range(4)))
    return path


def test_a_csv_gives_its_files_and_labels(listing, tree):
    source = open_csv(listing)
    assert source.class_names == ("ant", "bee") and len(source) == 8 and source.channels == 3
    assert [source[i]["label"] for i in range(8)] == [1] * 4 + [0] * 4
    assert source[0]["image"] == (tree / "bee" / "0.png").read_bytes()
    listing.write_text(listing.read_text().removeprefix("path,label\n").replace("images/", f"{tree}/"))  # no header, absolute
    assert [open_csv(listing)[i] for i in range(8)] == [source[i] for i in range(8)]


def test_slices_of_a_csv_are_disjoint_and_fingerprints_differ(listing):
    whole, *parts = (open_csv(listing, split) for split in ("train", "train[:75%]", "train[75%:]"))
    assert sorted(sum((part.files for part in parts), ())) == sorted(whole.files)
    for part in parts:
        assert [part.class_names[label] for label in part.labels] == [file.split("/")[1] for file in part.files]
    assert [len(part) for part in parts] == [6, 2] and len({s.fingerprint for s in (whole, *parts)}) == 3


def test_numbers_sort_as_numbers_and_a_class_list_fixes_the_order(tree):
    path = tree / "images.csv"
    path.write_text("".join(f"ant/{i}.png,{label}\n" for i, label in enumerate((10, 9, 2))))
    assert open_csv(path).class_names == ("2", "9", "10")
    (tree / "classes.txt").write_text("10\n2\n\n9\n11\n")
    source = open_csv(path)
    assert source.class_names == ("10", "2", "9", "11") and source.labels.tolist() == [0, 2, 1]


def test_a_class_list_fixes_the_order_of_folders_and_may_name_more(tree):
    (tree / "classes.txt").write_text("cat\nbee\nant\n")
    source = open_image_folder(str(tree), "train")
    assert source.class_names == ("cat", "bee", "ant")
    for i, name in enumerate(source.files):
        assert source.class_names[source[i]["label"]] == name.split("/")[0]
    (tree / "classes.txt").write_text("cat\nbee\n")
    with pytest.raises(ConfigError, match=r'has a class "ant" that .*classes.txt lacks'):
        open_image_folder(str(tree), "train")


def test_shards_are_made_of_a_csv(listing, tmp_path):
    prepare(str(listing), tmp_path / "shards")
    shards, source = open_shards(str(tmp_path / "shards"), "train"), open_csv(listing)
    assert sorted(x["label"] for x in shards.__getitems__(range(8))) == sorted(source.labels.tolist())
    assert {shards[i]["image"] for i in range(8)} == {source[i]["image"] for i in range(8)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no image"),
        ("path,label\n", "lists no image"),
        ("ant/0.png,a\nant/1.png\n", 'line 2: "ant/1.png" must be path,label'),
        ("ant/0.png,a\nant/1.png,b,c\n", "line 2"),
        ("ant/0.png,a\n\nant/9.png,b\n", 'line 3: "ant/9.png" cannot be read: No such file'),
        ("ant/0.png,a\nant/1.png,a\n", "has 1 class; at least 2"),
    ],
)
def test_csvs_that_cannot_be_used_are_refused_with_the_line(tree, text, words):
    (tree / "images.csv").write_text(text)
    with pytest.raises(ConfigError, match=words):
        open_csv(tree / "images.csv")


def test_other_files_splits_and_lists_are_refused(listing, tree):
    with pytest.raises(ConfigError, match=r'only the split "train"; set data.train_split="train\[:90%\]"'):
        open_csv(listing, "test")
    with pytest.raises(ConfigError, match="does not exist"):
        open_csv(tree / "none.csv")
    (listing.parent / "classes.txt").write_text("aunt\nbee\n")
    with pytest.raises(ConfigError, match='line 6: classes.txt has no class "ant"; did you mean aunt'):
        open_csv(listing)
    for text, words in (("a\nb\na\n", 'names "a" more than once'), ("a\n", "at least 2")):
        (tree / "classes.txt").write_text(text)
        with pytest.raises(ConfigError, match=words):
            open_image_folder(str(tree), "train")
    listing.write_bytes(np.arange(200, 256, dtype=np.uint8).tobytes())
    with pytest.raises(ConfigError, match="is no CSV in UTF-8"):
        open_csv(listing)


@pytest.fixture
def outside(tree):
    """Puts a secret file beside the CSV's folder, and links to outside and to a device inside.

    The links lead to the secret file and to its folder.
    """
    secret = tree.parent / "secret" / "key.png"
    secret.parent.mkdir()
    secret.write_text("a password")
    os.mkfifo(tree / "fifo.png")
    for name, target in {"link.png": secret, "folder": secret.parent, "zero.png": "/dev/zero", "loop.png": "loop.png"}.items():
        (tree / name).symlink_to(target)
    (tree / "deep").symlink_to("ant")
    return secret


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("../secret/key.png", "lies outside"),
        ("ant/../../secret/key.png", "lies outside"),
        ("{secret}", "lies outside"),
        ("link.png", "lies outside"),
        ("folder/key.png", "lies outside"),
        ("/dev/zero", "lies outside"),
        ("/proc/self/environ", "lies outside"),
        ("zero.png", "lies outside"),
        ("loop.png", "Too many levels of symbolic links"),
        ("fifo.png", "no regular file"),
        ("ant", "no regular file"),
        ("ant/0\0.png", "holds a NUL"),
        ("file:///etc/hostname", "cannot be read: give a path here, or one at gs://"),
        ("http://example.org/0.png", "cannot be read: give a path here"),
        ("a" * 5000, "File name too long"),
    ],
)
def test_only_regular_files_below_the_folder_of_a_csv_are_read_or_copied(tree, outside, tmp_path, entry, words):
    entry, begun = entry.format(secret=outside), time.monotonic()
    (tree / "images.csv").write_text(f"ant/0.png,ant\n{entry},bee\n")
    for use in (lambda: open_csv(tree / "images.csv"), lambda: main([str(tree / "images.csv"), str(tmp_path / "shards")])):
        with pytest.raises(ConfigError, match=rf"images.csv, line 2: .*{re.escape(words)}"):
            use()
    assert time.monotonic() - begun < 5 and not (tmp_path / "shards").exists()


def test_files_outside_are_read_when_that_is_meant(tree, outside, tmp_path, capsys):
    (tree / "images.csv").write_text("deep/0.png,ant\nant/../bee/1.png,bee\n")  # both files are inside, by a link and by ".."
    assert open_csv(tree / "images.csv")[0]["image"] == (tree / "ant" / "0.png").read_bytes()
    (tree / "images.csv").write_text(f"ant/0.png,ant\n../secret/key.png,bee\n{outside},bee\nlink.png,bee\n")
    data = DataConfig(source="image_folder", data_dir=str(tree / "images.csv"), follow_outside=True)
    assert [open_source(data, train=True)[i]["image"] for i in (1, 2, 3)] == [b"a password"] * 3
    assert main([str(tree / "images.csv"), str(tmp_path / "shards"), "--follow_outside"]) == 0
    (tree / "images.csv").write_text("ant/0.png,ant\nfifo.png,bee\n")
    with pytest.raises(ConfigError, match="line 2.*no regular file"):  # a FIFO is refused in any case
        open_source(data, train=True)


def test_a_file_that_becomes_a_fifo_does_not_hang_the_loader(listing, tree):
    source = open_csv(listing)
    (tree / "bee" / "0.png").unlink()
    os.mkfifo(tree / "bee" / "0.png")
    with pytest.raises(OSError, match="no regular file"):
        source[0]

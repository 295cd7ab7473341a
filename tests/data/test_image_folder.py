"""Class-per-folder trees: files that are found, and trees that are refused."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import write_tree
from vitlab.config import ConfigError, DataConfig
from vitlab.data import open_source
from vitlab.data.decode import decode
from vitlab.data.image_folder import open_image_folder


def test_classes_are_the_sorted_folders_and_files_are_found_at_any_depth(tree):
    (tree / "ant" / "deep" / "er").mkdir(parents=True)
    (tree / "ant" / "0.png").rename(tree / "ant" / "deep" / "er" / "0.PNG")
    (tree / "ant" / "notes.txt").write_text("not an image")
    (tree / ".hidden").mkdir()
    source = open_image_folder(str(tree), "train")
    assert source.class_names == ("ant", "bee") and len(source) == 12 and source.channels == 3
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert any(source.name_of(i).endswith("deep/er/0.PNG") for i in range(12))


def test_split_folders_share_the_classes_of_training(tmp_path):
    write_tree(tmp_path / "train", ("ant", "bee", "cat"), 2)
    write_tree(tmp_path / "val", ("cat",), 2)
    source = open_image_folder(str(tmp_path), "test")  # "val" is a synonym of "test"
    assert source.class_names == ("ant", "bee", "cat") and set(source.labels) == {2}


def test_slices_are_disjoint_and_cover_the_files(tree):
    parts = [open_image_folder(str(tree), split).files for split in ("train[:75%]", "train[75%:]")]
    assert sorted(sum(parts, ())) == sorted(open_image_folder(str(tree), "train").files)
    assert [len(part) for part in parts] == [9, 3]


def test_the_fingerprint_knows_added_renamed_and_changed_files(tree):
    prints = {open_image_folder(str(tree), "train").fingerprint}
    (tree / "ant" / "0.png").rename(tree / "ant" / "9.png")
    prints.add(open_image_folder(str(tree), "train").fingerprint)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tree / "ant" / "9.png")
    prints.add(open_image_folder(str(tree), "train").fingerprint)
    assert len(prints) == 3


def test_grey_files_make_a_grey_source(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / name / "x.png")
    assert open_image_folder(str(tmp_path), "train").channels == 1


@pytest.mark.parametrize(
    ("classes", "split", "words"),
    [
        ((), "train", "no class folder"),
        (("ant",), "train", "1 class folder.*at least 2"),
        (("ant", "bee"), "test", r'no folder "test"; make one .*or set data.train_split="train\[:90%\]"'),
        (("ant", "bee"), "train[:0]", "is empty"),
    ],
)
def test_trees_that_cannot_be_trained_on_are_refused_with_the_remedy(tmp_path, classes, split, words):
    write_tree(tmp_path, classes, 1)
    with pytest.raises(ConfigError, match=words):
        open_image_folder(str(tmp_path), split)


def test_an_empty_class_and_an_unknown_one_are_named(tmp_path):
    write_tree(tmp_path / "train", ("ant", "bee"), 1)
    write_tree(tmp_path / "val", ("aunt",), 1)
    with pytest.raises(ConfigError, match=r'has a class "aunt".*did you mean ant'):
        open_image_folder(str(tmp_path), "val")
    (tmp_path / "train" / "bee" / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"bee holds no image"):
        open_image_folder(str(tmp_path), "train")


@pytest.mark.parametrize("path", [None, "missing", "file"])
def test_a_root_that_is_no_folder_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="data_dir"):
        open_image_folder(path and str(tmp_path / path), "train")


def test_links_lead_out_of_the_root_only_when_that_is_meant(tree, tmp_path):
    write_tree(tmp_path / "elsewhere", ("bee",), 2)
    (tmp_path / "root").symlink_to(tree)  # the root may be a link
    (tree / "bee" / "one.png").symlink_to("../ant/0.png")
    assert len(open_image_folder(str(tmp_path / "root"), "train")) == 13
    for name, target in {"bee/deep": "bee", "cat": ""}.items():
        (tree / name).symlink_to(tmp_path / "elsewhere" / target)
        with pytest.raises(ConfigError, match=f"{name} lies outside .*set data.follow_outside=true"):
            open_image_folder(str(tmp_path / "root"), "train")
        assert len(open_image_folder(str(tmp_path / "root"), "train", follow_outside=True)) == 15
        (tree / name).unlink()
    (tree / "bee" / "key.png").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match=r"key.png lies outside"):
        open_image_folder(str(tree), "train")
    with pytest.raises(ConfigError, match="lies outside"):
        open_image_folder(str(tree / "ant"), "../../images")


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({"ant/loop": "."}, "loop is .*/ant once more, by a symbolic link"),
        ({"ant/loop": ".."}, "once more"),
        ({"self": "."}, "once more"),
        ({"train": "."}, "once more"),
        ({"ant/x": "../bee", "bee/y": "../ant"}, "once more"),
        ({"ant/loop.png": "loop.png"}, "loop.png cannot be read: Too many levels of symbolic links"),
        ({f"ant/{i}/{j}": f"../{i + 1}" for i in range(40) for j in "ab"}, "once more"),  # 2**40 paths to the files
    ],
)
def test_links_that_loop_or_repeat_are_refused_in_one_line(tree, links, words):
    for name, target in links.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)
    (tree / "ant" / "40").mkdir()
    with pytest.raises(ConfigError, match=words):
        open_image_folder(str(tree), "train")


def test_links_to_nothing_and_files_that_are_none_are_passed_over(tree):
    (tree / "ant" / "none.png").symlink_to("nothing")
    (tree / "loop").symlink_to("loop")  # a link to itself is no folder, so no class
    os.mkfifo(tree / "ant" / "fifo.png")
    source = open_image_folder(str(tree), "train")
    assert len(source) == 12 and source.class_names == ("ant", "bee")


def test_places_that_cannot_be_used_are_refused_in_one_line(tree, tmp_path, monkeypatch):
    undecodable = tmp_path / os.fsdecode(b"b\xffd")
    for place, words in (
        (tree / "ant" / "0.png", "is no folder"),
        (tree / "ant" / "0.png" / "below", "does not exist"),
        (tmp_path / "none", "does not exist"),
        (undecodable, "does not exist"),
        (f"{tree}\0", "none of them NUL"),
        ("http://example.org/images", "cannot be read: give a path here"),
        ("file:///images", "cannot be read: give a path here"),
        ("a" * 5000, "at most 4096 characters"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_source(DataConfig(source="image_folder", data_dir=str(place)), train=True)
    tree.rename(undecodable)
    assert len(open_source(DataConfig(source="image_folder", data_dir=str(undecodable)), train=True)) == 12
    scan = os.scandir

    def forbidden(path):
        if os.fspath(path).endswith("ant"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)  # root, who may run the tests, is never refused
    with pytest.raises(ConfigError, match="ant cannot be read: Permission denied"):
        open_image_folder(str(undecodable), "train")


@pytest.mark.parametrize("named", [("valid", "test", "train"), ("Training", "testing", "val"), ("validation", "car"), ("test", "a", "b")])
def test_classes_named_as_splits_are_classes_when_a_slice_is_asked_for(tmp_path, named):
    write_tree(tmp_path, named, 4)
    parts = [open_image_folder(str(tmp_path), split) for split in ("train[:75%]", "train[75%:]")]
    assert {part.class_names for part in parts} == {tuple(sorted(named))}
    assert sorted(parts[0].files + parts[1].files) == sorted(f"{name}/{i}.png" for name in named for i in range(4))


def test_a_class_named_as_a_split_among_others_needs_no_slice(tmp_path):
    write_tree(tmp_path, ("test", "car"), 2)
    assert open_image_folder(str(tmp_path), "train").class_names == ("car", "test")
    with pytest.raises(ConfigError, match=r'"test" is a class of .*train\[:90%\]'):
        open_image_folder(str(tmp_path), "test")


@pytest.mark.parametrize(("train", "evaluation"), [("train", "val"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "validation")])
def test_split_folders_are_found_in_any_case_and_can_be_sliced(tmp_path, train, evaluation):
    write_tree(tmp_path / train, ("ant", "bee"), 4)
    write_tree(tmp_path / evaluation, ("ant", "bee"), 2)
    (tmp_path / train / "preview.png").write_bytes((tmp_path / train / "ant" / "0.png").read_bytes())  # a file beside the class folders
    assert len(open_image_folder(str(tmp_path), "train")) == 8
    assert len(open_image_folder(str(tmp_path), "train[:75%]")) == 6
    assert len(open_image_folder(str(tmp_path), "test")) == 4


def test_other_folders_beside_splits_are_passed_over(tmp_path):
    write_tree(tmp_path / "train", ("ant", "bee"), 2)
    write_tree(tmp_path / "val", ("ant", "bee"), 2)
    write_tree(tmp_path, ("extra",), 2)
    for split in ("train", "train[:50%]", "test"):
        assert open_image_folder(str(tmp_path), split).class_names == ("ant", "bee")


def test_unlabelled_test_images_beside_a_training_split_are_no_class(tmp_path):
    write_tree(tmp_path / "train", ("ant", "bee"), 2)
    write_tree(tmp_path, ("test",), 2)
    assert open_image_folder(str(tmp_path), "train[:50%]").class_names == ("ant", "bee")
    with pytest.raises(ConfigError, match="test holds no image|no class folder"):
        open_image_folder(str(tmp_path), "test")


def test_what_can_be_read_in_two_ways_is_refused_until_a_list_of_classes_says_which(tmp_path):
    write_tree(tmp_path / "train", ("steam", "diesel"), 2)
    write_tree(tmp_path, ("car", "plane"), 2)
    with pytest.raises(
        ConfigError, match=r'two ways: "train" holds class folders and "(car|plane)", "(car|plane)" hold images.*classes.txt'
    ):
        open_image_folder(str(tmp_path), "train[:50%]")
    (tmp_path / "classes.txt").write_text("car\nplane\ntrain\n")
    assert set(open_image_folder(str(tmp_path), "train[:50%]").labels) == {0, 1, 2}
    (tmp_path / "classes.txt").write_text("steam\ndiesel\n")
    assert set(open_image_folder(str(tmp_path), "train[:50%]").labels) == {0, 1}


@pytest.mark.parametrize(("folders", "images"), [((), ("train", "test")), (("val",), ("train",))])
def test_images_without_class_folders_in_splits_are_refused(tmp_path, folders, images):
    for name in folders:
        write_tree(tmp_path / name, ("ant", "bee"), 2)
    write_tree(tmp_path, images, 2)
    with pytest.raises(ConfigError, match="two ways.*classes.txt"):
        open_image_folder(str(tmp_path), "train")


def test_files_of_other_extensions_are_counted_in_one_line_with_the_remedy(tree, caplog):
    for i in range(12):
        (tree / "ant" / f"{i}.heic").touch()
    (tree / "bee" / "notes.txt").touch()
    (tree / "bee" / "README").touch()
    (tree / "bee" / ".DS_Store").touch()
    for split in ("train[:50%]", "train[50%:]"):
        open_image_folder(str(tree), split)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tree}: 14 files left out: 12 .heic, 1 without extension, 1 .txt; no decoder here reads HEIC: convert them to JPEG or PNG"
    ]


def test_avif_and_jpeg_2000_are_read(tree):
    image = Image.open(tree / "ant" / "0.png")
    image.save(tree / "ant" / "a.avif")
    image.save(tree / "ant" / "b.JP2")
    source = open_image_folder(str(tree), "train")
    assert len(source) == 14
    for name in ("ant/a.avif", "ant/b.JP2"):
        pixels = decode(source[source.files.index(name)]["image"], 3)
        assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 12  # both encodings are lossy

"""Class-per-folder trees: what is found, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import write_tree
from vitlab.config import ConfigError
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
    source = open_image_folder(str(tmp_path), "test")  # "val" serves
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
        (("ant", "bee"), "test", r'no folder "test"; make one, or set data.train_split="train\[:90%\]"'),
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

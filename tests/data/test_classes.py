"""One order of classes for every source."""

import itertools
import os
import subprocess
import sys

import pytest

from tests.data.conftest import write_tree
from vitlab.data.classes import class_order, different_classes
from vitlab.data.image_csv import open_images


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (map(str, range(12)), tuple(map(str, range(12)))),
        (("1", "01", "001", "0"), ("0", "1", "01", "001")),
        (("0.0", "-1", "0.5", "10", "2"), ("-1", "0.0", "0.5", "2", "10")),
        (("1.0", "1", "+1"), ("1", "+1", "1.0")),
        ((".5", "-.5", "1."), ("-.5", ".5", "1.")),
        (("100000000000000000001", "100000000000000000000"), ("100000000000000000000", "100000000000000000001")),
        (("10", "2", "x"), ("10", "2", "x")),
        (("n02", "n1", "B", "a"), ("B", "a", "n02", "n1")),
        (("nan", "inf", "1"), ("1", "inf", "nan")),
        (("1e3", "5"), ("1e3", "5")),
        (("b", "a", "b"), ("a", "b")),
    ],
)
def test_numbers_are_ordered_by_value_and_everything_else_as_text(names, expected):
    names = tuple(names)
    for order in itertools.islice(itertools.permutations(names), 24):
        assert class_order(order) == expected


def test_folders_and_csvs_of_the_same_names_have_the_same_labels(tmp_path):
    names = ("0", "1", "2", "10", "11")
    write_tree(tmp_path / "images", names, per_class=1)
    (tmp_path / "all.csv").write_text("".join(f"images/{name}/0.png,{name}\n" for name in reversed(names)))
    folder, listed = (open_images(str(tmp_path / name), "train") for name in ("images", "all.csv"))
    assert folder.class_names == listed.class_names == names
    assert {file.split("/")[0]: label for file, label in zip(folder.files, folder.labels.tolist(), strict=True)} == {
        file.split("/")[1]: label for file, label in zip(listed.files, listed.labels.tolist(), strict=True)
    }


def test_the_order_does_not_depend_on_the_seed_of_hashes():
    script = "from vitlab.data.classes import class_order; print(class_order(['1', '01', '001', '1.0', '+1']))"
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2", "3")]
    assert len({subprocess.check_output([sys.executable, "-c", script], env=environment) for environment in environments}) == 1


def test_a_difference_of_order_alone_names_the_remedy():
    text = different_classes(("0", "1", "10"), ("0", "10", "1"), "the run", "the data")
    assert 'class 1 is "1" in the run, "10" in the data' in text and "classes.txt" in text
    assert "classes.txt" not in different_classes(("0", "1"), ("0", "2"), "a", "b")
    assert different_classes(("0", "1"), ("0",), "a", "b") == "a has 2, b has 1"

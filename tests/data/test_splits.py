"""Slices of labelled images: disjoint, stratified, and functions of paths and labels alone."""

import numpy as np
import pytest

from vitlab.config import ConfigError
from vitlab.data.splits import split_range, stratified


def listing(counts: list[int]) -> tuple[list[str], np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return [f"{label}/{i}.png" for i, label in enumerate(labels)], labels


def per_class(text: str, counts: list[int]) -> np.ndarray:
    files, labels = listing(counts)
    return np.bincount(labels[stratified(text, files, labels)], minlength=len(counts))


@pytest.mark.parametrize("percent", [1, 10, 50, 90, 99])
@pytest.mark.parametrize("counts", [[8] * 120, [2] * 7, [2, 3, 1000], [1, 2, 9, 500], [50, 30, 20]])
def test_a_bound_in_percent_has_every_class_of_two_images_on_both_sides(counts, percent):
    first, second = per_class(f"train[:{percent}%]", counts), per_class(f"train[{percent}%:]", counts)
    np.testing.assert_array_equal(first + second, counts)
    several = np.array(counts) > 1
    assert (first[several] > 0).all() and (second[several] > 0).all()
    wanted = np.clip(np.array(counts) * percent / 100, 1, np.array(counts) - 1)
    assert (np.abs(first - wanted)[several] <= len(counts)).all()  # the surplus of small classes is taken from large ones
    if len(set(counts)) == 1:
        assert np.ptp(first) <= 1


def test_the_only_image_of_a_class_is_for_training():
    counts = [1, 1, 1, 40, 40]
    assert per_class("train[:90%]", counts)[:3].tolist() == [1, 1, 1]
    assert per_class("train[10%:]", counts)[:3].tolist() == [1, 1, 1]


def test_shares_are_exact_where_the_classes_allow_it():
    assert per_class("train[:90%]", [100, 50, 20]).tolist() == [90, 45, 18]
    assert per_class("train[:34]", [100, 50, 20]).tolist() == [20, 10, 4]
    assert sum(per_class("train[10:33]", [100, 50, 20])) == 23
    assert sum(per_class("train[-5:]", [100, 50, 20])) == 5


def test_several_parts_are_disjoint_and_leave_nothing_out():
    files, labels = listing([2, 3, 11, 60, 1])
    parts = [stratified(text, files, labels).tolist() for text in ("x[:60%]", "x[60%:80%]", "x[80%:]")]
    assert sorted(i for part in parts for i in part) == list(range(len(files)))


def test_the_order_of_files_and_the_numbers_of_labels_do_not_matter():
    files, labels = listing([2, 3, 11, 60])
    kept = {files[i] for i in stratified("train[:70%]", files, labels)}
    shuffled = np.random.default_rng(0).permutation(len(files))
    again = stratified("train[:70%]", [files[i] for i in shuffled], 9 - labels[shuffled])
    assert {files[shuffled[i]] for i in again} == kept


@pytest.mark.parametrize("text", ["train[100%:]", "train[:0%]", "train[:0]", "train[50%:50%]", "train[8:8]", "train[90%:80%]"])
def test_empty_parts_are_refused(text):
    with pytest.raises(ConfigError, match="is empty"):
        stratified(text, *listing([4, 4]))


def test_a_margin_never_takes_more_than_half():
    for percent in (1, 50, 99):
        part = split_range(f"x[:{percent}%]", 14, margin=7)
        assert (part.start, part.stop) == (0, 7)

"""Messages of a resumed run whose data are read otherwise than when it started."""

import dataclasses

from vitlab.runs.folder import DataInfo, change_of_data

OLD = DataInfo(fingerprint="a", num_examples=10, channels=1, class_names=("0", "10", "2"))


def test_another_order_of_classes_is_named_with_the_remedy():
    text = change_of_data(OLD, dataclasses.replace(OLD, class_names=("0", "2", "10"), fingerprint="b"), "train")
    assert 'class 1 is "10" in the run, "2" in the data' in text and "classes.txt" in text


def test_another_number_of_channels_is_named_with_the_remedy():
    text = change_of_data(OLD, dataclasses.replace(OLD, channels=3), "train")
    assert "channels: 1 -> 3" in text and "model.in_channels=1" in text


def test_another_draw_of_a_slice_is_thought_of():
    new = dataclasses.replace(OLD, fingerprint="b")
    assert "10 (a) -> 10 (b)" in change_of_data(OLD, new, "train")
    assert "another draw of train[:90%]" in change_of_data(OLD, new, "train[:90%]")
    assert "draw" not in change_of_data(OLD, new, "train")

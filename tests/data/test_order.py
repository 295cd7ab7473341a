"""Permutations, random streams and split slices."""

import pickle

import numpy as np
import pytest

from vitlab.config import ConfigError
from vitlab.data.order import ShuffledOrder, stream
from vitlab.data.splits import split_range


def test_every_epoch_is_another_permutation_and_any_cut_gives_the_same_order():
    order = ShuffledOrder(7, seed=1)
    whole = order(np.arange(28))
    for epoch in whole.reshape(4, 7):
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in whole.reshape(4, 7)}) > 1
    again = np.concatenate([pickle.loads(pickle.dumps(order))(part) for part in np.split(np.arange(28), [5, 6, 19])])
    np.testing.assert_array_equal(again, whole)


def test_streams_are_functions_of_name_seed_and_number():
    draws = {key: stream(*key).random() for key in (("image", 0, 1), ("image", 1, 1), ("image", 0, 2), ("batch", 0, 1))}
    assert len(set(draws.values())) == 4
    assert stream("image", 0, 1).random() == draws["image", 0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("train", (0, 200)), ("train[:10%]", (0, 20)), ("train[-50:]", (150, 200)), ("train[25%:75%]", (50, 150)), ("train[:999]", (0, 200))],
)
def test_slices_count_as_tfds_counts(text, expected):
    part = split_range(text, 200)
    assert (part.start, part.stop) == expected


@pytest.mark.parametrize("text", ["train[", "train[1:2:3]", "train[a:]", "train[5:5]", ""])
def test_malformed_and_empty_slices_are_refused(text):
    with pytest.raises(ConfigError, match="split"):
        split_range(text, 200)

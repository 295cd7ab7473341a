"""Permutations, random streams and split slices."""

import pickle

import numpy as np
import pytest

from vitlab.config import ConfigError
from vitlab.data.order import BalancedOrder, ShuffledOrder, stream
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


LABELS = np.array([0] * 50 + [1] * 3 + [3] * 7)  # class 2 has no image


def test_a_balanced_order_draws_every_class_alike_and_goes_through_each():
    order = BalancedOrder(LABELS, seed=4)
    indices = order(np.arange(3000))
    assert np.bincount(LABELS[indices[:2580]]).tolist() == [860, 860, 0, 860]  # ten rounds of 258 indices
    for label, count in ((0, 50), (1, 3), (3, 7)):
        own = indices[LABELS[indices] == label]
        epochs = own[: len(own) // count * count].reshape(-1, count)
        np.testing.assert_array_equal(np.sort(epochs, 1), np.broadcast_to(np.flatnonzero(label == LABELS), epochs.shape))
    for size in (30, 64):
        shares = [np.bincount(LABELS[batch], minlength=4) for batch in indices.reshape(-1)[: 3000 // size * size].reshape(-1, size)]
        assert np.abs(np.array(shares)[:, [0, 1, 3]] - size / 3).max() <= 6


def test_any_cut_of_a_balanced_order_is_the_same_and_seeds_differ():
    order = BalancedOrder(LABELS, seed=4, repeats=2)
    whole = order(np.arange(1000))
    again = [pickle.loads(pickle.dumps(order))(part) for part in np.split(np.arange(1000), [7, 300, 777])]
    np.testing.assert_array_equal(np.concatenate(again), whole)
    pairs = whole.reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])  # copies are neighbours
    assert not np.array_equal(BalancedOrder(LABELS, seed=5, repeats=2)(np.arange(1000)), whole)

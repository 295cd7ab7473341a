"""Properties of orders and slices that hold for every size, found by search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitlab.config import ConfigError
from vitlab.data.order import MixedOrder, ShuffledOrder
from vitlab.data.splits import split_range

SEEDS = st.integers(0, 2**63 - 1)


@given(st.integers(1, 50), SEEDS, st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_shows_every_image_once_or_the_first_of_them_repeatedly(num_images, seed, repeats, epoch):
    positions = np.arange(epoch * num_images, (epoch + 1) * num_images)
    indices = ShuffledOrder(num_images, seed, repeats=repeats)(positions)
    values, counts = np.unique(indices, return_counts=True)
    assert len(values) == -(-num_images // repeats) and counts.max() <= repeats
    assert indices.min() >= 0 and indices.max() < num_images


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=4), SEEDS)
def test_a_mixture_keeps_its_weights_in_each_round_and_goes_through_each_source(parts, seed):
    lengths, weights = zip(*parts, strict=True)
    order = MixedOrder(lengths, weights, seed)
    size = int(order.shares.sum())
    source = np.searchsorted(np.cumsum(lengths), order(np.arange(2 * size)), "right")
    for part, share in enumerate(order.shares):
        assert (source[:size] == part).sum() == (source[size:] == part).sum() == share
        assert share * sum(weights) == size * weights[part]
    indices = order(np.arange(2 * size))
    for part, length in enumerate(lengths):
        own = indices[source == part][:length]
        assert len(set(own.tolist())) == len(own)


@given(st.integers(1, 300), SEEDS, st.data())
def test_any_cut_of_the_sequence_gives_the_same_order(num_images, seed, data):
    positions = np.arange(data.draw(st.integers(0, 700)), 900)
    cut = data.draw(st.integers(0, len(positions)))
    order, whole = ShuffledOrder(num_images, seed), ShuffledOrder(num_images, seed)(positions)
    np.testing.assert_array_equal(np.concatenate([order(positions[cut:]), order(positions[:cut])]), np.roll(whole, -cut))


@given(st.integers(1, 1000), st.integers(0, 100))
def test_two_sides_of_a_percentage_are_all_images_and_share_none(num_images, percent):
    parts = []
    for text in (f"train[:{percent}%]", f"train[{percent}%:]"):
        try:
            part = split_range(text, num_images)
        except ConfigError as error:
            assert "empty" in str(error)
        else:
            parts += range(part.start, part.stop)
    assert parts == list(range(num_images))


@given(st.text(max_size=30), st.integers(1, 100))
def test_any_text_is_a_part_of_the_images_or_refused_in_one_line(text, num_images):
    try:
        part = split_range(text, num_images)
    except ConfigError as error:
        assert "split" in str(error)
    else:
        assert 0 <= part.start < part.stop <= num_images


@pytest.mark.parametrize("text", ["train[:5000000000000000000000]", "train[-99999999999999999999:]"])
def test_numbers_beyond_all_images_are_cut(text):
    assert split_range(text, 10) == slice(0, 10)

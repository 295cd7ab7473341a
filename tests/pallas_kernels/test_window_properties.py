"""Properties of windows and neighborhoods that hold for every size, found by search."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.neighborhood_attention import neighborhoods
from pallas_kernels.neighborhood_attention.tiles import TpuAxis
from pallas_kernels.window_attention import windows


@st.composite
def window_axes(draw) -> windows.Axis:
    window = draw(st.integers(1, 9))
    grid = draw(st.booleans())
    shift = 0 if grid else draw(st.integers(0, window - 1))
    return windows.Axis(draw(st.integers(1, 40)), window, shift, grid)


@st.composite
def neighborhood_axes(draw) -> neighborhoods.Axis:
    kernel, dilation = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    size = draw(st.integers(kernel * dilation, kernel * dilation + 30))
    return neighborhoods.Axis(size, kernel, dilation, draw(st.integers(1, kernel)), draw(st.booleans()))


@given(window_axes())
def test_every_token_is_in_one_slot_of_one_window(axis):
    order = axis.order()
    assert sorted(order[order < axis.size]) == list(range(axis.size))
    np.testing.assert_array_equal(order[axis.inverse_order()], np.arange(axis.size))


@given(neighborhood_axes())
def test_every_query_sees_as_many_keys_of_its_class_as_the_kernel_has_and_itself(axis):
    mask = axis.mask()
    residue = np.arange(axis.size) % axis.dilation
    assert not mask[residue[:, None] != residue].any()
    seen = mask.sum(1)
    assert (seen <= axis.kernel).all() and mask.any(1).all()
    if not axis.causal:
        assert (seen == axis.kernel).all()
    if axis.stride == 1:
        assert mask.diagonal().all()
    if axis.causal:
        assert not np.triu(mask, 1).any()


@given(neighborhood_axes())
def test_windows_grow_with_the_position_and_the_inverse_windows_are_their_inverse(axis):
    start, stop = axis.windows()
    assert (np.diff(start) >= 0).all() and (np.diff(stop) >= 0).all()
    first, last = axis.inverse_windows()
    for residue, size in enumerate(axis.class_sizes()):
        queries, keys = np.arange(size)[:, None], np.arange(size)
        forward = (keys >= start[residue, :size, None]) & (keys < stop[residue, :size, None])
        backward = (queries >= first[residue, :size]) & (queries < last[residue, :size])
        np.testing.assert_array_equal(forward, backward)


@given(neighborhood_axes(), st.sampled_from([8, 16, 32]))
def test_the_key_block_of_a_tpu_s_tile_has_all_that_its_queries_see(axis, tile):
    cut = TpuAxis(axis, tile, columns=True)
    start, stop = (x.reshape(axis.dilation, -1)[:, : axis.positions] for x in cut.windows)
    number = np.arange(axis.positions) // tile
    assert (cut.starts[number] <= start).all() and (stop <= cut.starts[number] + cut.width).all()
    np.testing.assert_array_equal((start, stop), axis.windows())

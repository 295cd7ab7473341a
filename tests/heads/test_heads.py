"""Each head against a few lines of numpy, and in its known limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.heads.attention_pool import AttentionPool
from vitlab.heads.center_point import CenterMaps, CenterPoint, boxes_of
from vitlab.heads.classifier import drop_channels
from vitlab.heads.density import Density, count
from vitlab.heads.dpt import DPT, Fusion
from vitlab.heads.fcn import FCN
from vitlab.heads.fpn import FPN
from vitlab.heads.linear import LinearHead
from vitlab.heads.pixel_shuffle import PixelShuffle, Upsample, depth_to_space
from vitlab.heads.recurrent_criss_cross import RecurrentCrissCrossHead
from vitlab.heads.segformer_mlp import SegFormerMlp
from vitlab.heads.semantic_fpn import SemanticFPN
from vitlab.heads.simple_pyramid import SimplePyramid
from vitlab.heads.upernet import UPerNet
from vitlab.layers.resize import resize_bilinear
from vitlab.weights.load import load_weights
from vitlab.weights.save import to_foreign

EPS = 1e-5  # epsilon of every batch norm
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # results are sums of some hundred float32 products of order one


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def maps(dims, *sizes, batch=2):
    return tuple(jnp.asarray(rand(batch, *size, dim, seed=i)) for i, (dim, size) in enumerate(zip(dims, sizes, strict=True)))


def test_depth_to_space_orders_pixels_as_torch():
    x, factor = rand(2, 2, 3, 18), 3
    out = np.asarray(depth_to_space(jnp.asarray(x), factor))
    assert out.shape == (2, 6, 9, 2)
    for y, z, c in np.ndindex(6, 9, 2):
        np.testing.assert_array_equal(out[:, y, z, c], x[:, y // 3, z // 3, c * 9 + y % 3 * 3 + z % 3])
    with pytest.raises(ValueError, match="18 channels must be a multiple of 16, the square of factor=4"):
        depth_to_space(jnp.asarray(x), 4)


def test_upsample_is_the_transposed_convolution_of_separate_windows():
    part = Upsample(3, 2, factor=2, rngs=nnx.Rngs(0))
    part.bias[...] = jnp.asarray([1.0, -1.0])
    x, kernel = rand(1, 2, 3, 3), np.asarray(part.conv.kernel[...])[0, 0].reshape(3, 2, 2, 2)
    expected = np.einsum("bhwd,dcij->bhiwjc", x, kernel).reshape(1, 4, 6, 2) + np.asarray([1, -1])
    np.testing.assert_allclose(part(jnp.asarray(x)), expected, **ROUNDING)


def test_pixel_shuffle_gives_the_images_own_size_or_a_multiple():
    features = maps((6, 8), (4, 6), (2, 3))
    for factor, size in ((None, (16, 24)), (8, (32, 48)), (1, (4, 6))):
        head = PixelShuffle((6, 8), (4, 8), 3, dim=8, factor=factor, rngs=nnx.Rngs(0))
        assert head(features, train=False).shape == (2, *size, 3)
        assert head.stride == 16 / size[0]


def test_linear_head_standardises_each_channel_and_has_no_other_scale():
    head = LinearHead((6, 8), (4, 8), 5, rngs=nnx.Rngs(0))
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(head, nnx.Param))} == {"classifier"}
    fine, coarse = maps((6, 8), (4, 6), (4, 6))
    x = np.concatenate([fine, coarse], -1)
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPS)
    expected = x @ np.asarray(head.classifier.conv.kernel[...])[0, 0]
    np.testing.assert_allclose(head((fine, coarse), train=True), expected, **ROUNDING)


def test_linear_head_resizes_coarser_maps_to_the_finest():
    head = LinearHead((6, 8), (12, 16), 5, rngs=nnx.Rngs(0))
    fine, coarse = maps((6, 8), (4, 4), (3, 3))
    same = LinearHead((6, 8), (12, 12), 5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(head((fine, coarse), train=False), same((fine, resize_bilinear(coarse, (4, 4))), train=False))


def test_fcn_reads_the_last_map_and_sees_its_input_again():
    head = FCN((6, 8), (4, 8), 5, dim=7, num_convs=2, concat_input=True, rngs=nnx.Rngs(0))
    features = maps((6, 8), (4, 6), (2, 3))
    assert head.concat_conv.conv.kernel.shape == (3, 3, 8 + 7, 7)
    out = head(features, train=False)
    assert out.shape == (2, 2, 3, 5)
    np.testing.assert_array_equal(out, head((features[0] + 1, features[1]), train=False))


def test_fpn_adds_the_nearest_pixels_of_the_coarser_map():
    part = FPN((3, 4), (4, 8), dim=2, rngs=nnx.Rngs(0))
    fine, coarse = maps((3, 4), (5, 6), (3, 3))  # the rows are no multiples
    lateral = [np.asarray(x @ part.laterals[i].kernel[...][0, 0]) for i, x in enumerate((fine, coarse))]
    above = lateral[1][:, [0, 0, 1, 1, 2]][:, :, [0, 0, 1, 1, 2, 2]]
    out = part((fine, coarse))
    np.testing.assert_allclose(out[0], part.convs[0](jnp.asarray(lateral[0] + above)), **ROUNDING)
    np.testing.assert_allclose(out[1], part.convs[1](jnp.asarray(lateral[1])), **ROUNDING)


def test_semantic_fpn_never_doubles_the_finest_level():
    head = SemanticFPN((3,) * 4, (4, 8, 16, 32), 2, dim=8, neck_dim=None, rngs=nnx.Rngs(0))
    assert [len(level) for level in head.levels] == [1, 1, 2, 3]
    features = maps((3,) * 4, (16, 16), (8, 8), (4, 4), (2, 2))
    moved = (features[0].at[:, 5, 5].add(10), *features[1:])
    changed = np.array((head(moved, train=False) != head(features, train=False)).any((0, 3)))
    assert changed[4:7, 4:7].any()
    changed[4:7, 4:7] = False  # the positions that one 3x3 convolution reaches
    assert not changed.any()


def test_semantic_fpn_takes_sides_that_the_strides_do_not_divide():
    head = SemanticFPN((3,) * 3, (4, 8, 16), 2, dim=8, neck_dim=4, rngs=nnx.Rngs(0))
    assert head(maps((3,) * 3, (7, 5), (4, 3), (2, 2)), train=False).shape == (2, 7, 5, 2)


def torch_bins(size, bins):
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def test_upernet_pools_by_torchs_overlapping_bins():
    head = UPerNet((3, 4), (4, 8), 2, dim=5, pool_sizes=(3,), rngs=nnx.Rngs(0))
    x = rand(2, 7, 5, 4)
    assert torch_bins(7, 3) == [(0, 3), (2, 5), (4, 7)]
    pooled = np.stack([np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in torch_bins(5, 3)], 1) for a, b in torch_bins(7, 3)], 1)
    pooled = np.maximum(pooled @ np.asarray(head.pooled[0].conv.kernel[...])[0, 0] / np.sqrt(1 + EPS), 0)
    both = jnp.concatenate([x, resize_bilinear(jnp.asarray(pooled), (7, 5))], -1)
    np.testing.assert_allclose(head._pool(jnp.asarray(x), train=False), jax.nn.relu(head.bottleneck(both)), **ROUNDING)


def test_segformer_mlp_is_two_linear_maps_of_a_pixel():
    head = SegFormerMlp((3, 4), (4, 8), 2, dim=5, rngs=nnx.Rngs(0))
    fine, coarse = maps((3, 4), (4, 6), (2, 3))
    both = [fine @ head.projections[0].kernel[...], resize_bilinear(coarse @ head.projections[1].kernel[...], (4, 6))]
    x = np.maximum(np.concatenate(both, -1) @ np.asarray(head.fusion.conv.kernel[...])[0, 0] / np.sqrt(1 + EPS), 0)
    expected = x @ np.asarray(head.classifier.conv.kernel[...])[0, 0]
    np.testing.assert_allclose(head((fine, coarse), train=False), expected, **ROUNDING)


@pytest.mark.parametrize("strides, sizes", [((16,) * 4, ((5, 3),) * 4), ((4, 8, 16, 32), ((20, 12), (10, 6), (5, 3), (3, 2)))])
def test_dpt_ends_at_half_the_size_of_an_image(strides, sizes):
    head = DPT((8,) * 4, strides, 1, dim=4, reassemble_dims=(4, 5, 6, 7), rngs=nnx.Rngs(0))
    assert head.stride == 2
    assert head(maps((8,) * 4, *sizes), train=False).shape == (2, 40, 24, 1)


def test_dpt_reads_each_of_its_maps():
    head = DPT((8,) * 4, (16,) * 4, 1, dim=4, reassemble_dims=(4,) * 4, rngs=nnx.Rngs(0))
    features = maps((8,) * 4, *((2, 2),) * 4)
    grads = jax.grad(lambda x: head(x, train=False).sum())(features)
    assert all(float(jnp.abs(grad).max()) > 0 for grad in grads)


def test_dpt_adds_the_coarser_map_and_resizes_with_aligned_corners():
    part = Fusion(3, sums=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for unit in (part.unit1, part.unit2):  # makes the residual units identities
        unit.conv2.kernel[...] = jnp.zeros_like(unit.conv2.kernel[...])
    part.project.kernel[...] = jnp.eye(3)[None, None]
    x, above = maps((3, 3), (2, 3), (2, 3))
    out = np.asarray(part(x, above, (4, 5)))
    np.testing.assert_allclose(out[:, ::3, ::2], x + above, **ROUNDING)
    np.testing.assert_allclose(out[:, 1], out[:, 0] + (out[:, 3] - out[:, 0]) / 3, **ROUNDING)


def test_simple_pyramid_makes_maps_of_four_strides_from_the_last():
    pyramid = SimplePyramid((8, 8), (14, 14), dim=6, rngs=nnx.Rngs(0))
    assert (pyramid.strides, pyramid.dims) == ((3.5, 7, 14, 28), (6,) * 4)
    first, last = maps((8, 8), (5, 4), (5, 4))
    out = pyramid((first, last))
    assert [x.shape for x in out] == [(2, 20, 16, 6), (2, 10, 8, 6), (2, 5, 4, 6), (2, 3, 2, 6)]
    assert all(jnp.array_equal(a, b) for a, b in zip(out, pyramid((first + 1, last)), strict=True))
    half = pyramid((first, last.at[:, 4].add(5)))[3]  # the fifth row is alone in its pooling window
    assert not jnp.array_equal(half[:, 2], out[3][:, 2])


def test_density_counts_what_it_sums_and_is_never_negative():
    head = Density((6, 8), (4, 8), 2, dim=8, rngs=nnx.Rngs(0))
    features = maps((6, 8), (4, 6), (2, 3))
    out = head(features, train=False)
    assert out.shape == (2, 4, 6, 2)
    assert float(out.min()) >= 0
    np.testing.assert_allclose(count(out), np.asarray(out, np.float64).sum((1, 2)), rtol=1e-6)
    head.conv.kernel[...] = jnp.zeros_like(head.conv.kernel[...])
    np.testing.assert_allclose(count(head(features, train=False)), 24 * math.log1p(math.exp(-4)), rtol=1e-5)
    head.conv.bias[...] = jnp.full(2, -1000.0)
    np.testing.assert_array_equal(head(features, train=False), 0)


def hand_made(h=6, w=8, k=2):
    return CenterMaps(jnp.full((1, h, w, k), -9.0), jnp.zeros((1, h, w, 2)), jnp.zeros((1, h, w, 2)))


def test_peaks_of_a_heatmap_become_boxes():
    heatmap, size, offset = hand_made()
    heatmap = heatmap.at[0, 2, 3, 1].set(2.0).at[0, 2, 4, 1].set(1.0)  # the second value is a neighbour of the peak, no peak
    heatmap = heatmap.at[0, 2, 4, 0].set(-1.0).at[0, 5, 7, 0].set(3.0)  # another class at the neighbour, and a peak in the corner
    size = size.at[0, 2, 3].set(jnp.log(jnp.asarray([4.0, 2.0])))
    offset = offset.at[0, 2, 3].set(jnp.asarray([0.25, -0.5]))
    found = boxes_of(CenterMaps(heatmap, size, offset), stride=4, num_boxes=3)
    np.testing.assert_array_equal(found.classes[0], [0, 1, 0])
    np.testing.assert_allclose(found.scores[0], 1 / (1 + np.exp([-3, -2, 1])), rtol=1e-6)
    expected = [[28, 20, 32, 24], [15 - 8, 8 - 4, 15 + 8, 8 + 4], [16, 8, 20, 12]]
    np.testing.assert_allclose(found.boxes[0], expected, rtol=1e-6)


def test_peaks_stay_apart_where_their_scores_are_equal_in_float32():
    heatmap, size, offset = hand_made()
    heatmap = heatmap.at[0, 2, 3, 1].set(40.0).at[0, 2, 4, 1].set(60.0)
    assert float(jax.nn.sigmoid(jnp.float32(40))) == 1
    found = boxes_of(CenterMaps(heatmap, size, offset), stride=1, num_boxes=2)
    np.testing.assert_allclose(found.boxes[0, 0], [4, 2, 5, 3])
    assert float(found.scores[0, 1]) < 0.5


def test_boxes_beyond_the_peaks_have_no_score_and_shapes_are_static():
    heatmap, size, offset = hand_made(h=3, w=3, k=1)
    heatmap = heatmap.at[0, 1, 1, 0].set(2.0)
    found = jax.jit(lambda maps: boxes_of(maps, stride=4, num_boxes=9))(CenterMaps(heatmap, size + 99, offset))
    assert found.boxes.shape == (1, 9, 4)
    np.testing.assert_array_equal(found.scores[0, 1:], 0)
    assert bool(jnp.isfinite(found.boxes).all())
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"num_boxes={wrong} must be from 1 to 9"):
            boxes_of(CenterMaps(heatmap, size, offset), stride=4, num_boxes=wrong)


@pytest.mark.parametrize("strides, stride", [((16,), 4), ((14,), 3.5), ((12, 16), 4), ((4, 8), 4), ((2, 4), 2)])
def test_center_point_is_as_fine_as_it_was_asked_to_be(strides, stride):
    head = CenterPoint((8,) * len(strides), strides, 3, dim=4, stride=4, rngs=nnx.Rngs(0))
    assert head.stride == stride
    out = head(maps((8,) * len(strides), *[(2, 3)] * len(strides)), train=False)
    assert out.heatmap.shape == (2, 2 * strides[0] / stride, 3 * strides[0] / stride, 3)
    assert float(jax.nn.sigmoid(out.heatmap).mean()) < 0.1  # initial scores are low


def test_attention_pool_is_softmax_attention_of_one_query():
    head = AttentionPool((8,), (16,), 3, num_heads=2, rngs=nnx.Rngs(0))
    pool = head.pool
    pool.latent[...] = jnp.asarray(rand(1, 1, 8))
    for layer in (pool.q, pool.kv):
        layer.kernel[...] = layer.kernel[...] * 30  # weights that differ from equal ones
    x = rand(2, 2, 3, 8)
    query = np.asarray(pool.q(pool.latent[...])).reshape(2, 4)
    key, value = np.moveaxis(np.asarray(pool.kv(jnp.asarray(x))).reshape(2, 6, 2, 2, 4), 2, 0)
    weights = np.exp(np.einsum("gd,bngd->bgn", query, key) / 2)
    weights /= weights.sum(-1, keepdims=True)
    y = pool.proj(jnp.asarray(np.einsum("bgn,bngd->bgd", weights, value).reshape(2, 8)))
    pooled = y + pool.mlp(pool.norm(y))
    np.testing.assert_allclose(head((jnp.asarray(x),), train=False), head.head(pooled), **ROUNDING)
    turned = jnp.asarray(x[:, ::-1, ::-1].copy())
    np.testing.assert_allclose(head((turned,), train=False), head((jnp.asarray(x),), train=False), **ROUNDING)


@pytest.mark.parametrize("dim, heads", [(768, 12), (420, 6), (720, 10), (16, 1), (127, 1)])
def test_attention_pool_has_heads_of_at_least_64_channels_that_divide_the_width(dim, heads):
    assert AttentionPool((dim,), (16,), 0, mlp_ratio=0.1, rngs=nnx.Rngs(0)).num_heads == heads


def test_attention_pool_without_an_output_gives_the_vector():
    head = AttentionPool((8, 16), (8, 16), 0, rngs=nnx.Rngs(0))
    assert head(maps((8, 16), (4, 6), (2, 3)), train=False).shape == (2, 16)
    with pytest.raises(ValueError, match="dim=16 must be a multiple of num_heads=3"):
        AttentionPool((8, 16), (8, 16), 0, num_heads=3, rngs=nnx.Rngs(0))


def test_dropout_removes_whole_channels_and_keeps_the_mean():
    x = jnp.ones((200, 2, 3, 20))
    out = np.asarray(drop_channels(x, 0.25, rngs=nnx.Rngs(dropout=0)))
    assert (out == out[:, :1, :1]).all()
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert out.mean() == pytest.approx(1, abs=4 * (1 / 3 / 4000) ** 0.5)  # four standard deviations
    with pytest.raises(ValueError, match="random numbers"):
        drop_channels(x, 0.25, rngs=None)


def test_training_moves_the_statistics_and_drops_channels():
    head = UPerNet((3, 4), (4, 8), 2, dim=5, dropout_rate=0.5, rngs=nnx.Rngs(0))
    features = maps((3, 4), (4, 6), (2, 3))
    before = head.fusion.norm.mean[...]
    one, two = (head(features, train=True, rngs=nnx.Rngs(dropout=i)) for i in (0, 1))
    assert not jnp.array_equal(one, two)
    assert not jnp.array_equal(before, head.fusion.norm.mean[...])
    assert jnp.array_equal(head(features, train=False), head(features, train=False))


def test_recurrent_criss_cross_reads_the_last_map_twice_and_sees_all_of_it():
    head = RecurrentCrissCrossHead((6, 8), (4, 8), 3, dim=4, rngs=nnx.Rngs(0))
    assert (head.conv1.conv.kernel.shape, head.fusion.conv.kernel.shape) == ((3, 3, 8, 2), (3, 3, 10, 4))
    features = maps((6, 8), (8, 10), (8, 9))
    slope = lambda x: jnp.where(x > 0, x, 0.01 * x)  # noqa: E731
    x = features[1]
    middle = slope(head.conv2(slope(head.conv1(x))))  # gamma is 0 at first, so that attention is the identity
    expected = head.classifier.conv(slope(head.fusion(jnp.concatenate([x, middle], -1))))
    np.testing.assert_allclose(head(features, train=False), expected, **ROUNDING)
    head.rcca.cca.gamma[...] = jnp.ones(1)
    far = np.asarray(head((features[0], x.at[:, 0, 0].add(5)), train=False) != head(features, train=False))
    assert far.any(-1).all()


def test_recurrent_criss_cross_leaves_in_the_names_that_it_came_with():
    head = RecurrentCrissCrossHead((8,), (8,), 3, dim=4, rngs=nnx.Rngs(0))
    state = to_foreign(head)
    assert state["cca.query_conv.weight"].shape == (1, 2, 1, 1) and state["bottleneck.3.weight"].shape == (3, 4, 1, 1)
    assert state["convb.1.running_mean"].shape == (2,)
    report = load_weights(RecurrentCrissCrossHead((8,), (8,), 3, dim=4, rngs=nnx.Rngs(1)), state)
    assert report.name_map == "speedinghzl/CCNet" and not report.misfits

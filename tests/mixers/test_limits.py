"""Each mechanism in a limit that is easy to write down, and a few oracles in numpy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers import Attention
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.rope import axial_rotation, rotate
from vitlab.mixers import MIXERS
from vitlab.mixers.agent import AgentAttention
from vitlab.mixers.bi_level_routing import BiLevelRoutingAttention
from vitlab.mixers.cascaded_group import CascadedGroupAttention
from vitlab.mixers.channel_attention import ChannelAttention
from vitlab.mixers.context_mixing import ContextMixing
from vitlab.mixers.cosine_window import CosineWindowAttention
from vitlab.mixers.cross_shaped import CrossShapedAttention
from vitlab.mixers.efficient_attention import EfficientAttention
from vitlab.mixers.focal_modulation import FocalModulation
from vitlab.mixers.gated_conv import GatedConv
from vitlab.mixers.glmix import GLMix
from vitlab.mixers.hilo import HiLo
from vitlab.mixers.inline import InLineAttention
from vitlab.mixers.large_kernel import LargeKernelAttention
from vitlab.mixers.light_attention import LightAttention
from vitlab.mixers.long_short import LongShortAttention
from vitlab.mixers.multi_axis import PartitionAttention
from vitlab.mixers.neighborhood import NeighborhoodAttention
from vitlab.mixers.pooling import Pooling
from vitlab.mixers.relative_attention import RelativeAttention
from vitlab.mixers.scale_aware_modulation import ScaleAwareModulation
from vitlab.mixers.self_guided import HybridScaleAttention, SelfGuidedAttention
from vitlab.mixers.single_head import SingleHeadAttention
from vitlab.mixers.spatial_reduction import SpatialReductionAttention
from vitlab.mixers.spectral import SpectralGating
from vitlab.mixers.super_token import SuperTokenAttention

TOLERANCE = 2e-5  # float32 sums of a few hundred terms of order one, in another order
gelu = lambda x: np.asarray(jax.nn.gelu(jnp.asarray(x), approximate=False))  # noqa: E731


def noise(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def build(cls, dim, **options):
    mixer = cls(dim, rngs=nnx.Rngs(0), **options)
    graphdef, state = nnx.split(mixer)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), state)
    return nnx.merge(graphdef, state)


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(np.asarray(expected)).max())))


def linear(layer, x):
    bias = 0 if layer.bias is None else np.asarray(layer.bias[...])
    return np.asarray(x) @ np.asarray(layer.kernel[...]).reshape(x.shape[-1], -1) + bias


def attend(q, k, v, scale=None):
    """Returns one head's attention, [tokens, dim]."""
    logits = q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def heads_of(x, heads):
    return np.asarray(x).reshape(-1, heads, x.shape[-1] // heads).swapaxes(0, 1)


def dense(q, k, v, heads, scale=None):
    return np.concatenate([attend(*parts, scale) for parts in zip(*(heads_of(y, heads) for y in (q, k, v)), strict=True)], -1)


def depthwise(conv, x):
    """Returns a depthwise convolution of a map [h, w, c], tap by tap."""
    kernel, dilation = (
        np.asarray(conv.kernel[...]),
        conv.kernel_dilation if isinstance(conv.kernel_dilation, int) else conv.kernel_dilation[0],
    )
    side = kernel.shape[0]
    pad = dilation * (side - 1) // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    out = 0 if conv.bias is None else np.asarray(conv.bias[...])
    for i in range(side):
        for j in range(side):
            out = out + padded[i * dilation :, j * dilation :][: x.shape[0], : x.shape[1]] * kernel[i, j, 0]
    return out


X = noise((1, 6, 6, 8))
FLAT = np.asarray(X)[0].reshape(36, 8)


def test_hilo_with_a_window_of_one_token_is_global_attention():
    mixer = build(HiLo, 8, num_heads=2, window_size=1)
    kv = linear(mixer.l_kv, FLAT)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.l_proj, dense(linear(mixer.l_q, FLAT), kv[:, :8], kv[:, 8:], 2)))


def test_hilo_is_window_attention_beside_attention_to_the_means():
    mixer = build(HiLo, 8, num_heads=2, window_size=2, alpha=0.5)
    out = np.asarray(mixer(X))[0]
    window = np.asarray(X)[0, 2:4, 4:6].reshape(4, 8)
    qkv = linear(mixer.h_qkv, window)
    same(out[2:4, 4:6, :4].reshape(4, 4), linear(mixer.h_proj, dense(qkv[:, :4], qkv[:, 4:8], qkv[:, 8:], 1)))
    means = np.asarray(X)[0].reshape(3, 2, 3, 2, 8).mean((1, 3)).reshape(9, 8)
    kv = linear(mixer.l_kv, means)
    same(out[..., 4:].reshape(36, 4), linear(mixer.l_proj, dense(linear(mixer.l_q, FLAT), kv[:, :4], kv[:, 4:], 1)))


def test_cross_shaped_attention_is_attention_inside_a_column_and_a_row_of_stripes():
    mixer = build(CrossShapedAttention, 8, num_heads=2, split_size=2)
    qkv = linear(mixer.qkv, FLAT).reshape(6, 6, 3, 8)
    column, row = qkv[:, 2:4, :, :4].reshape(12, 3, 4), qkv[4:, :, :, 4:].reshape(12, 3, 4)
    (left, right), part = mixer.lepe, lambda y: tuple(y[:, i] for i in range(3))
    outs = [attend(*part(column)).reshape(6, 2, 4), attend(*part(row)).reshape(2, 6, 4)]
    outs[0] += depthwise(left, column[:, 2].reshape(6, 2, 4))
    outs[1] += depthwise(right, row[:, 2].reshape(2, 6, 4))
    both = np.concatenate((outs[0][4:], outs[1][:, 2:4]), -1)  # where they cross
    same(mixer(X)[0, 4:, 2:4], linear(mixer.proj, both))


def test_reduction_to_cells_of_one_token_is_global_attention_to_normalised_tokens():
    plain, reduced = (build(SpatialReductionAttention, 8, num_heads=2, sr_ratio=ratio) for ratio in (1, 2))
    kv = linear(plain.kv, FLAT)
    same(plain(X)[0].reshape(36, 8), linear(plain.proj, dense(linear(plain.q, FLAT), kv[:, :8], kv[:, 8:], 2)))
    cells = np.asarray(X)[0].reshape(3, 2, 3, 2, 8).swapaxes(1, 2).reshape(9, 2, 2, 8)
    cells = np.einsum("nhwc,hwcd->nd", cells, np.asarray(reduced.sr.kernel[...])) + np.asarray(reduced.sr.bias[...])
    kv = linear(reduced.kv, reduced.norm(jnp.asarray(cells, jnp.float32)))
    same(reduced(X)[0].reshape(36, 8), linear(reduced.proj, dense(linear(reduced.q, FLAT), kv[:, :8], kv[:, 8:], 2)))
    assert reduced(X[:, :5, :5]).shape == (1, 5, 5, 8)


def test_pooling_is_the_mean_of_the_neighbours_inside_the_map_less_the_position():
    out = Pooling(8, rngs=nnx.Rngs(0))(X)
    same(out[0, 0, 0], np.asarray(X)[0, :2, :2].mean((0, 1)) - np.asarray(X)[0, 0, 0])
    same(out[0, 3, 2], np.asarray(X)[0, 2:5, 1:4].mean((0, 1)) - np.asarray(X)[0, 3, 2])


def test_relative_attention_is_global_attention_with_a_number_for_each_offset():
    mixer = build(RelativeAttention, 8, num_heads=2, grid=(6, 6))
    qkv = linear(mixer.qkv, FLAT).reshape(36, 2, 3, 4)  # heads outermost
    rows, cols = np.divmod(np.arange(36), 6)
    bias = np.asarray(mixer.rel_pos_bias[...])[:, rows[:, None] - rows + 5, cols[:, None] - cols + 5]
    logits = np.einsum("qhd,khd->hqk", qkv[:, :, 0], qkv[:, :, 1]) / 2 + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.proj, np.einsum("hqk,khd->qhd", weights, qkv[:, :, 2]).reshape(36, 8)))


def test_significance_is_the_mean_attention_that_a_token_and_its_cell_get():
    mixer = build(HybridScaleAttention, 8, num_heads=2, sr_ratio=2, window_size=3)
    _, significance = mixer(X)
    cells = gelu(np.asarray(mixer.norm(mixer.sr(X)))[0].reshape(9, 8))
    weights = lambda q, k: np.exp(q @ k.T / 2) / np.exp(q @ k.T / 2).sum(-1, keepdims=True)  # noqa: E731
    coarse = weights(linear(mixer.q1, FLAT), linear(mixer.kv1, cells)[:, :4]).mean(0).reshape(3, 3).repeat(2, 0).repeat(2, 1)
    window = np.asarray(X)[0, 3:, :3].reshape(9, 8)
    local = weights(linear(mixer.q2, window), linear(mixer.kv2, window)[:, :4]).mean(0).reshape(3, 3)
    same(significance[0, 3:, :3], coarse[3:, :3] + local)
    padded = mixer(X[:, :5, :4])[1]  # a window of 2 x 1 tokens: what is padded is not seen
    assert float(padded.sum()) == pytest.approx(4.0 + 5 * 4 * 0.25, rel=0.2)


def test_self_guided_attention_merges_tokens_in_the_order_of_their_significance():
    mixer = build(SelfGuidedAttention, 8, num_heads=2, sr_ratio=2)
    significance = jax.random.uniform(jax.random.key(0), (1, 6, 6))

    def keys(x, score):
        tokens = x[np.argsort(score)]
        two, one = (np.asarray(merge.kernel[...]) for merge in mixer.merges)
        biases = [np.asarray(merge.bias[...]) for merge in mixer.merges]
        return np.concatenate((np.einsum("nkc,ko->nc", tokens[:18].reshape(9, 2, 8), two) + biases[0], tokens[18:] * one + biases[1]))

    by_rows = linear(mixer.kv1, keys(FLAT, np.asarray(significance).reshape(36)))
    by_cols = linear(mixer.kv2, keys(np.asarray(X)[0].swapaxes(0, 1).reshape(36, 8), np.asarray(significance)[0].T.reshape(36)))
    q = linear(mixer.q, FLAT)
    out = np.concatenate((attend(q[:, :4], by_rows[:, :4], by_rows[:, 4:]), attend(q[:, 4:], by_cols[:, :4], by_cols[:, 4:])), -1)
    same(mixer(X, significance)[0].reshape(36, 8), linear(mixer.proj, out + np.asarray(mixer.lepe(X))[0].reshape(36, 8)))


def test_super_tokens_of_one_token_are_global_attention_with_heads_outermost():
    mixer = build(SuperTokenAttention, 8, num_heads=2, cell_size=1)
    qkv = linear(mixer.stoken_refine.qkv, FLAT).reshape(36, 2, 3, 4)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.stoken_refine.proj, dense(*(qkv[:, :, i].reshape(36, 8) for i in range(3)), 2)))


def test_super_tokens_follow_the_equations_on_one_cell():
    mixer = build(SuperTokenAttention, 8, num_heads=1, cell_size=6)
    logits = np.zeros((36, 9))  # neighbours of the only cell are zeros
    logits[:, 4] = FLAT @ FLAT.mean(0) * 8**-0.5
    share = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 4]
    token = share @ FLAT / share.sum()
    qkv = linear(mixer.stoken_refine.qkv, token[None])
    refined = linear(mixer.stoken_refine.proj, qkv[:, 16:])  # one super token attends to itself
    same(mixer(X)[0].reshape(36, 8), share[:, None] * refined)


def test_routing_to_all_regions_is_global_attention_with_the_scale_of_the_whole_width():
    mixer = build(BiLevelRoutingAttention, 8, num_heads=2, num_regions=3, topk=9)
    q, k, v = np.split(linear(mixer.qkv, FLAT), 3, -1)
    lepe = depthwise(mixer.lepe, v.reshape(6, 6, 8)).reshape(36, 8)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.wo, dense(q, k, v, 2, scale=8**-0.5) + lepe))


def test_routing_to_one_region_takes_the_nearest():
    mixer = build(BiLevelRoutingAttention, 8, num_heads=1, num_regions=3, topk=1)
    q, k, v = (y.reshape(3, 2, 3, 2, 8).swapaxes(1, 2).reshape(9, 4, 8) for y in np.split(linear(mixer.qkv, FLAT), 3, -1))
    best = (q.mean(1) @ k.mean(1).T).argmax(1)
    expected = np.stack([attend(q[r], k[best[r]], v[best[r]]) for r in range(9)]).reshape(3, 3, 2, 2, 8).swapaxes(1, 2).reshape(6, 6, 8)
    lepe = depthwise(mixer.lepe, np.split(linear(mixer.qkv, FLAT), 3, -1)[2].reshape(6, 6, 8))
    same(mixer(X)[0], linear(mixer.wo, expected + lepe))


def test_channel_attention_weighs_queries_by_keys_and_values():
    mixer = build(ChannelAttention, 8, num_heads=2)
    q, k, v = (heads_of(y, 2) for y in np.split(linear(mixer.qkv, FLAT), 3, -1))
    groups = []
    for g in range(2):
        logits = k[g].T @ v[g] * 4**-0.5
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        groups.append(q[g] @ (weights / weights.sum(-1, keepdims=True)).T)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.proj, np.concatenate(groups, -1)))


def test_focal_modulation_chains_its_contexts():
    mixer = build(FocalModulation, 8, levels=2)
    q, context, gates = np.split(linear(mixer.f, np.asarray(X)[0]), (8, 16), -1)
    total = 0
    for level, conv in enumerate(mixer.focal_layers):
        context = gelu(depthwise(conv, context))
        total = total + context * gates[..., level, None]
    total = total + gelu(context.mean((0, 1))) * gates[..., 2, None]
    same(mixer(X)[0], linear(mixer.proj, q * linear(mixer.h, total)))


def test_gated_conv_convolves_the_last_channels():
    mixer = build(GatedConv, 8, expansion_ratio=1.5, kernel_size=3)
    gate, identity, conv = np.split(linear(mixer.fc1, np.asarray(X)[0]), (12, 16), -1)
    same(mixer(X)[0], linear(mixer.fc2, gelu(gate) * np.concatenate((identity, depthwise(mixer.conv, conv)), -1)))


def test_large_kernel_attention_is_a_gate_of_three_convolutions():
    mixer = build(LargeKernelAttention, 8)
    u = gelu(linear(mixer.proj_1, np.asarray(X)[0]))
    unit = mixer.spatial_gating_unit
    gate = linear(unit.conv1, depthwise(unit.conv_spatial, depthwise(unit.conv0, u)))
    same(mixer(X)[0], np.asarray(X)[0] + linear(mixer.proj_2, u * gate))


def test_spectral_gating_is_a_circular_convolution():
    mixer = build(SpectralGating, 8, grid=(6, 6))
    shifted = SpectralGating(8, grid=(6, 6), rngs=nnx.Rngs(0))
    row, col = np.arange(6)[:, None, None], np.arange(4)[None, :, None]
    phase = np.broadcast_to(np.exp(-2j * np.pi * (row / 6 + 2 * col / 6)), (6, 4, 8))  # delay by one row and two columns
    shifted.complex_weight[...] = jnp.stack((jnp.asarray(phase.real), jnp.asarray(phase.imag)), -1).astype(jnp.float32)
    same(shifted(X)[0], np.roll(np.asarray(X)[0], (1, 2), (0, 1)))
    same(mixer(jnp.roll(X, 2, 1)), jnp.roll(mixer(X), 2, 1))


def test_neighborhood_attention_as_large_as_the_map_is_global_attention():
    mixer = build(NeighborhoodAttention, 8, num_heads=2, kernel_size=6, rel_pos=False)
    same(mixer(X), _as_attention(mixer)(X.reshape(1, 36, 8)).reshape(X.shape))


def test_groups_as_large_as_the_map_are_global_attention_and_the_bias_moves_it():
    mixer = build(LongShortAttention, 8, num_heads=2, group_size=7)
    plain = _as_attention(mixer)(X.reshape(1, 36, 8)).reshape(X.shape)
    assert float(jnp.abs(mixer(X) - plain).max()) > 1e-5  # measured: 1.5e-4, and 3e-8 without the bias
    mixer.pos.layers[2].kernel[...] = jnp.zeros((4, 2))
    mixer.pos.layers[2].bias[...] = jnp.zeros(2)
    same(mixer(X), plain)


def test_long_distance_groups_hold_every_other_token():
    mixer = build(LongShortAttention, 8, num_heads=2, group_size=3, interval=2, long=True)
    short = build(LongShortAttention, 8, num_heads=2, group_size=3, interval=2)
    out, every_other = np.asarray(mixer(X)), np.asarray(short(X[:, 1::2, ::2]))
    same(out[:, 1::2, ::2], every_other)


def test_grid_attention_holds_every_other_token():
    grid, block = (build(PartitionAttention, 8, num_heads=2, window_size=3, grid=g) for g in (True, False))
    same(np.asarray(grid(X))[:, ::2, 1::2], block(X[:, ::2, 1::2]))


def test_cosine_attention_does_not_see_the_length_of_keys():
    mixer = build(CosineWindowAttention, 8, num_heads=2, window_size=3)
    before = mixer(X)
    kernel = mixer.qkv.kernel[...]
    mixer.qkv.kernel[...] = kernel.at[:, 8:16].multiply(3.0)
    same(mixer(X), before)
    table = np.asarray(mixer.bias_table())
    assert table.shape == (2, 5, 5) and (table > 0).all() and (table < 16).all()


def test_efficient_attention_pools_tokens_in_row_major_order():
    mixer = build(EfficientAttention, 8, num_heads=2, sr_ratio=2)
    keys = np.asarray(mixer.norm(jnp.asarray(FLAT.reshape(9, 4, 8).mean(1))[None], train=False))[0]
    expected = dense(linear(mixer.q, FLAT), linear(mixer.k, keys), linear(mixer.v, keys), 2)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.proj, expected))


def test_light_attention_pools_cells():
    mixer = build(LightAttention, 8, num_heads=1, pool_rate=3)
    cells = X.reshape(1, 2, 3, 2, 3, 8).mean((2, 4))
    q, k, v = (np.asarray(layer(y)).reshape(-1, 8) for layer, y in ((mixer.q, X), (mixer.k, cells), (mixer.v, cells)))
    same(mixer(X), mixer.proj(jnp.asarray(attend(q, k, v)).reshape(X.shape)))


def test_single_head_attention_leaves_the_other_channels_to_the_projection():
    mixer = build(SingleHeadAttention, 8, partial_dim=3, key_dim=4)
    qkv = np.asarray(mixer.qkv(mixer.pre_norm(X[..., :3]))).reshape(36, 11)
    mixed = np.concatenate((attend(qkv[:, :4], qkv[:, 4:8], qkv[:, 8:]), FLAT[:, 3:]), -1)
    same(mixer(X), mixer.proj(jax.nn.relu(jnp.asarray(mixed).reshape(X.shape))))


def test_cascaded_groups_hand_their_output_on():
    mixer = build(CascadedGroupAttention, 8, num_heads=2, window_size=6, key_dim=4, kernel_sizes=(3, 3))
    bias = np.asarray(mixer.attention_biases[...])
    y, x = np.divmod(np.arange(36), 6)
    outs = []
    for i in range(2):
        part = X[..., 4 * i : 4 * i + 4] + (outs[-1] if outs else 0)
        q, k, v = jnp.split(mixer.qkvs[i](part), (4, 8), -1)
        q, k, v = (np.asarray(z).reshape(36, -1) for z in (mixer.dws[i](q), k, v))
        logits = q @ k.T * 4**-0.5 + bias[i][abs(y[:, None] - y), abs(x[:, None] - x)]
        weights = np.exp(logits - logits.max(1, keepdims=True))
        outs.append(jnp.asarray(weights / weights.sum(1, keepdims=True) @ v).reshape(1, 6, 6, 4))
    same(mixer(X), mixer.proj(jax.nn.relu(jnp.concatenate(outs, -1))))


def test_scale_aware_modulation_interleaves_its_heads():
    mixer = build(ScaleAwareModulation, 8, num_heads=2)
    s = linear(mixer.s, np.asarray(X)[0])
    heads = [depthwise(mixer.local_convs[i], s[..., 4 * i : 4 * i + 4]) for i in range(2)]
    mixed = np.stack(heads, -1).reshape(6, 6, 8)  # channel = position * heads + head
    kernel = np.asarray(mixer.proj0.kernel[...])[0, 0]  # two inputs of each of four groups
    grouped = np.concatenate([mixed[..., 2 * g : 2 * g + 2] @ kernel[:, 4 * g : 4 * g + 4] for g in range(4)], -1)
    grouped = grouped + np.asarray(mixer.proj0.bias[...])
    modulator = linear(mixer.proj1, gelu(mixer.bn(jnp.asarray(grouped), train=False)))
    same(mixer(X)[0], linear(mixer.proj, modulator * linear(mixer.v, np.asarray(X)[0])))


def test_glmix_gathers_and_gives_back_by_the_same_logits():
    mixer = build(GLMix, 8, num_heads=2, num_slots=4, kernel_size=3)
    slots = np.asarray(X)[0].reshape(2, 3, 2, 3, 8).mean((1, 3)).reshape(4, 8)
    unit = lambda z: z / np.linalg.norm(z, axis=-1, keepdims=True)  # noqa: E731
    logits = float(mixer.slot_scale[...]) * unit(slots) @ unit(FLAT).T
    gathered = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) @ FLAT
    gathered = np.asarray(mixer.relation_mha(jnp.asarray(gathered)[None]))[0]
    back = (np.exp(logits) / np.exp(logits).sum(0)).T @ gathered
    local = linear(mixer.local_out, depthwise(mixer.local_conv, linear(mixer.local_in, np.asarray(X)[0])))
    same(mixer(X)[0], back.reshape(6, 6, 8) + local)


def agent_steps(mixer, q, k, v, agents, asking, asked):
    """The two steps of agent attention, head by head, [tokens, dim].

    Biases are [heads, agents, tokens].
    """
    out = []
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)  # noqa: E731
    for head in range(2):
        qh, kh, vh, ah = (heads_of(y, 2)[head] for y in (q, k, v, agents))
        found = softmax(ah @ kh.T * 4**-0.5 + np.asarray(asking)[head]) @ vh
        out.append(softmax(qh @ ah.T * 4**-0.5 + np.asarray(asked)[head].T) @ found)
    return np.concatenate(out, -1)


def test_agents_ask_and_are_asked_under_biases_of_map_row_and_column():
    mixer = build(AgentAttention, 8, num_heads=2, num_agents=9, grid=(6, 6), fused=False)
    q, k, v = np.split(np.concatenate((linear(mixer.q, FLAT), linear(mixer.kv, FLAT)), -1), 3, -1)
    agents = q.reshape(3, 2, 3, 2, 8).mean((1, 3)).reshape(9, 8)

    def bias(way):
        coarse, rows, cols = (np.asarray(getattr(mixer, name + "_bias")[...]) for name in way)
        fine = np.asarray(jax.image.resize(jnp.asarray(coarse), (2, 9, 6, 6), "linear", antialias=False))
        return (fine + rows[..., None] + cols[:, :, None]).reshape(2, 9, 36)

    out = agent_steps(mixer, q, k, v, agents, bias(("an", "ah", "aw")), bias(("na", "ha", "wa")))
    local = depthwise(mixer.dwc, v.reshape(6, 6, 8)).reshape(36, 8)
    same(mixer(X)[0].reshape(36, 8), linear(mixer.proj, out + local))


def test_a_class_token_asks_the_agents_and_is_asked_but_is_none():
    mixer = build(AgentAttention, 8, num_heads=2, num_agents=36, grid=(6, 6), num_class_tokens=1)
    for name in ("an", "na", "ah", "aw", "ha", "wa"):
        table = getattr(mixer, name + "_bias")
        table[...] = jnp.zeros_like(table[...])
    tokens = jnp.concatenate((noise((1, 1, 8), 7), X.reshape(1, 36, 8)), 1)
    q, k, v = np.split(linear(mixer.qkv, np.asarray(tokens)[0]), 3, -1)
    asking, asked = (np.pad(np.asarray(getattr(mixer, name)[...]), ((0, 0), (0, 0), (0, 36))) for name in ("ac_bias", "ca_bias"))
    out = agent_steps(mixer, q, k, v, q[1:], asking, asked)  # each patch is an agent
    out[1:] += depthwise(mixer.dwc, v[1:].reshape(6, 6, 8)).reshape(36, 8)
    same(mixer.tokens(tokens, (6, 6))[0], linear(mixer.proj, out))


def test_agent_attention_of_another_size_has_its_biases_interpolated():
    mixer = build(AgentAttention, 8, num_heads=2, num_agents=4, grid=(6, 6))
    other = nnx.clone(mixer)
    at = np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5)  # half-pixel centres
    for bias in (other.aw_bias, other.wa_bias):
        lines = np.asarray(bias[...]).reshape(8, 6)
        bias.set_value(jnp.asarray([np.interp(at, np.arange(6), y) for y in lines], jnp.float32).reshape(2, 4, 12))
    x = noise((1, 6, 12, 8), 9)
    same(mixer(x), other(x))


def test_injective_weights_sum_to_one_and_the_mean_token_makes_the_kernels():
    mixer = build(InLineAttention, 8, num_heads=2)
    q, k, v = (heads_of(y, 2) for y in np.split(linear(mixer.qkv, FLAT), 3, -1))
    products = q @ k.swapaxes(1, 2) * 4**-0.5 / 36
    weights = products - products.mean(-1, keepdims=True) + 1 / 36
    same(weights.sum(-1), np.ones((2, 36)))
    mean = FLAT.mean(0)
    for layer in (mixer.residual1, mixer.residual2):  # each head has its own group of channels
        kernel, halves = np.asarray(layer.kernel[...])[0, 0], mean.reshape(2, -1)
        width = kernel.shape[1] // 2
        mean = np.concatenate([halves[i] @ kernel[:, i * width : (i + 1) * width] for i in range(2)]) + np.asarray(layer.bias[...])
        mean = gelu(mean) if layer is mixer.residual1 else mean
    padded = np.pad(np.concatenate(list(v), -1).reshape(6, 6, 8), ((1, 1), (1, 1), (0, 0)))
    local = sum(padded[i : i + 6, j : j + 6] * mean.reshape(8, 3, 3)[:, i, j] for i in range(3) for j in range(3))
    same(mixer(X)[0], linear(mixer.proj, np.concatenate(list(weights @ v), -1).reshape(6, 6, 8) + local))


def test_a_class_token_takes_part_in_linear_attention_but_not_in_the_convolution():
    mixer = build(InLineAttention, 8, num_heads=2)
    for layer in (mixer.residual1, mixer.residual2):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    taps = jnp.zeros((8, 3, 3)).at[:, 1, 1].set(1.0)  # the convolution is the identity
    mixer.residual2.bias[...] = taps.reshape(-1)
    tokens = jnp.concatenate((noise((1, 1, 8), 7), X.reshape(1, 36, 8)), 1)
    q, k, v = np.split(linear(mixer.qkv, np.asarray(tokens)[0]), 3, -1)
    products = np.stack([a @ b.T * 4**-0.5 / 37 for a, b in zip(heads_of(q, 2), heads_of(k, 2), strict=True)])
    out = (products - products.mean(-1, keepdims=True) + 1 / 37) @ heads_of(v, 2)
    expected = np.concatenate(list(out), -1) + np.concatenate((np.zeros((1, 8)), v[1:]))
    same(mixer.tokens(tokens, (6, 6))[0], linear(mixer.proj, expected))


def test_context_mixing_makes_kernels_of_affinities_and_moves_windows_inside_at_the_border():
    mixer = build(ContextMixing, 8, num_heads=2, context_dim=4, kernel_size=5, small_size=3)
    x, context, value = (noise((1, 7, 8, c), seed) for seed, c in ((1, 8), (2, 4), (3, 8)))
    pooled = np.asarray(adaptive_average_pool(context, (7, 7)))
    q = np.asarray(mixer.query(x))[0].reshape(7, 8, 2, 2) * (8 / 2) ** -0.5
    k = np.asarray(mixer.key(jnp.asarray(pooled)))[0].reshape(49, 2, 2)
    logits = linear(mixer.taps, np.einsum("hwgc,lgc->hwgl", q, k))
    out = np.zeros((7, 8, 8))
    for part, (size, table, taps) in enumerate(((3, mixer.small_bias, logits[..., :9]), (5, mixer.large_bias, logits[..., 9:]))):
        values = np.asarray(value)[0, ..., 4 * part : 4 * part + 4].reshape(7, 8, 2, 2)
        for i in range(7):
            for j in range(8):
                top, left = np.clip(i - size // 2, 0, 7 - size), np.clip(j - size // 2, 0, 8 - size)
                at = top - i + size - 1, left - j + size - 1
                bias = np.asarray(table[...])[:, at[0] : at[0] + size, at[1] : at[1] + size].reshape(2, -1)
                weights = np.exp(taps[i, j] + bias)
                weights /= weights.sum(-1, keepdims=True)
                window = values[top : top + size, left : left + size].reshape(-1, 2, 2)
                out[i, j, 4 * part : 4 * part + 4] = np.einsum("gk,kgc->gc", weights, window).reshape(-1)
    same(mixer(x, context, value), mixer.proj(jnp.asarray(out[None], jnp.float32)))


def test_context_mixing_enlarges_a_map_smaller_than_its_kernels_and_averages_back():
    mixer, x = build(ContextMixing, 8, num_heads=2, kernel_size=5), X[:, :3, :4]
    same(mixer(x), adaptive_average_pool(mixer(resize_bilinear(x, (5, 6))), (3, 4)))


def test_rotary_positions_leave_products_to_the_offset():
    table = axial_rotation((5, 4), 8)
    q, k = (noise((1, 1, 1, 8), seed) for seed in (3, 4))
    turned = [np.asarray(rotate(jnp.broadcast_to(y, (1, 20, 1, 8)), table))[0, :, 0] for y in (q, k)]
    products = turned[0] @ turned[1].T
    at = lambda row, col: row * 4 + col  # noqa: E731
    same(products[at(3, 2), at(2, 0)], products[at(1, 3), at(0, 1)])


def _as_attention(mixer) -> Attention:
    """Returns global attention with the mixer's projections."""
    attention = Attention(8, num_heads=2, rngs=nnx.Rngs(0))
    for layer in ("qkv", "proj"):
        getattr(attention, layer).kernel[...] = getattr(mixer, layer).kernel[...]
        getattr(attention, layer).bias[...] = getattr(mixer, layer).bias[...]
    return attention


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_parameter_gets_a_gradient_and_bfloat16_follows(name):
    x = noise((1, 8, 8, 16), 5)
    outs = []
    for dtype in ("float32", "bfloat16"):
        graphdef, params, rest = nnx.split(build(MIXERS[name], 16, num_heads=2, dtype=jnp.dtype(dtype)), nnx.Param, ...)

        def run(params, x, graphdef=graphdef, rest=rest):
            mixer = nnx.merge(graphdef, params, rest, copy=True)
            options = {"train": False} if "train" in inspect.signature(type(mixer).__call__).parameters else {}
            return mixer(x, **options)

        outs.append(np.asarray(jax.jit(run)(params, x.astype(dtype)), np.float32))
        if dtype == "float32":
            grads = jax.jit(jax.grad(lambda params, x, run=run: jnp.sum(jnp.sin(run(params, x)) ** 2)))(params, x)
            dead = [".".join(map(str, path)) for path, g in nnx.to_flat_state(grads) if not np.abs(g[...]).max() > 0]
            assert not dead
    # Operations round by 2^-8 relative, and a routing may choose another region at a near tie.
    assert np.median(np.abs(outs[1] - outs[0])) < 0.05 * np.abs(outs[0]).max()

"""Name maps are read in both directions."""

import numpy as np
import pytest

from vitlab.weights.rules import Axes, FlatTable, Flipped, NameMap, Rule, SquareTable, pointwise


@pytest.mark.parametrize(
    ("foreign", "here", "name", "renamed"),
    [
        ("^head.fc.", "^head.", "head.fc.weight", "head.weight"),
        ("^layers.{i}.downsample.", "^layers.{i+1}.downsample.", "layers.9.downsample.norm.bias", "layers.10.downsample.norm.bias"),
        ("^block{i}.", "^stages.{i-1}.blocks.", "block1.0.norm1.weight", "stages.0.blocks.0.norm1.weight"),
        (".proj.{3i+1}.", ".norms.{i}.", "patch_embed.proj.7.bias", "patch_embed.norms.2.bias"),
        (".{x:conv|norm}.", ".part.{x}.", "a.norm.b.conv.c", "a.part.norm.b.part.conv.c"),
        ("^{x:cls_token|pos_embed}_{i}$", "^embeddings.{i}.{x}$", "pos_embed_1", "embeddings.1.pos_embed"),
    ],
)
def test_a_rule_renames_and_undoes(foreign, here, name, renamed):
    rule = Rule(foreign, here)
    assert rule.apply(name) == renamed
    assert rule.undo(renamed) == name


@pytest.mark.parametrize(
    ("foreign", "here", "name"),
    [
        ("^head.", "^h.", "a.head.b"),  # the part is not at the start
        (".bias$", ".b$", "a.bias.c"),  # the part is not at the end
        (".proj.{3i+1}.", ".norms.{i}.", "a.proj.2.b"),  # 2 is not 3i + 1
        ("^block{i}.", "^stages.{i-1}.", "block0.a"),  # there is no stage -1
        (".{x:conv|norm}.", ".part.{x}.", "a.linear.b"),  # another word
        ("head.fc.", "head.", "head_fc."),  # a dot in a rule is a dot
    ],
)
def test_a_rule_leaves_other_names_alone(foreign, here, name):
    assert Rule(foreign, here).apply(name) is None


def test_a_map_read_backwards_leaves_out_what_would_not_come_back():
    names = NameMap(source="x", rules=(Rule(".bn.", ".norm."), Rule("^head.norm.", "^norm.")))
    assert names.apply("head.bn.weight") == ("norm.weight", ())
    assert names.undo("norm.weight") == ("head.bn.weight", ())
    assert names.undo("a.norm.bias") == ("a.bn.bias", ())
    assert names.undo("a.bn.bias") is None  # no checkpoint has a tensor of such a name


@pytest.mark.parametrize(
    ("layout", "foreign", "here"),
    [
        (Axes("1nah1", "nah"), (1, 2, 3, 4, 1), (2, 3, 4)),
        (Axes("1nh1a", "nah"), (1, 2, 4, 1, 3), (2, 3, 4)),
        (Axes("oi1", "oi11"), (5, 6, 1), (5, 6, 1, 1)),
        (SquareTable(), (25, 3), (3, 5, 5)),
        (SquareTable(heads_first=True), (3, 25), (3, 5, 5)),
        (Flipped(), (3, 5, 5), (3, 5, 5)),
        (FlatTable(), (15, 3), (3, 15)),
    ],
)
def test_a_layout_and_its_inverse(layout, foreign, here):
    value = np.arange(np.prod(foreign), dtype=np.float32).reshape(foreign)
    assert layout.forward(value).shape == here
    np.testing.assert_array_equal(layout.inverse(layout.forward(value)), value)


def test_axes_are_moved_not_only_named():
    value = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 1, 3)
    np.testing.assert_array_equal(Axes("1nh1a", "nah").forward(value), value[0, :, :, 0].swapaxes(1, 2))
    table = np.arange(18, dtype=np.float32).reshape(9, 2)
    assert SquareTable().forward(table)[1, 2, 0] == table[6, 1]


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Axes("1nah1", "nah"), (2, 2, 3, 4, 1)),
        (Axes("1nah1", "nah"), (4,)),
        (SquareTable(), (26, 3)),
        (SquareTable(), (0, 3)),
        (Flipped(), (5, 5)),
    ],
)
def test_a_tensor_without_that_layout_is_refused_with_its_shape(layout, shape):
    with pytest.raises(ValueError, match=r"shape \(|positions"):
        layout.forward(np.zeros(shape, np.float32))


def test_a_linear_layer_in_place_of_a_convolution_keeps_its_axes():
    (rule,) = pointwise(".mlp.fc1")
    value = np.zeros((3, 4), np.float32)
    assert rule.layout.forward(value).shape == (3, 4)
    assert rule.layout.inverse(value).shape == (3, 4, 1, 1)

import jax
import jax.numpy as jnp
import pytest

from vitlab.config import ConfigError, OptimizerConfig
from vitlab.functional import functional
from vitlab.models.registry import create_model, list_models
from vitlab.train.groups import groups_of, layer_depths
from vitlab.tree import leaf_names


def shapes(name, **fields):
    return jax.eval_shape(lambda: functional(create_model(name, num_classes=5, **fields))[1]["params"])


def by_name(params, tree):
    return dict(zip(leaf_names(params), jax.tree.leaves(tree), strict=True))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("deit_tiny_distilled_patch16", {"dim": 16, "depth": 1, "num_heads": 2, "num_registers": 2}),
        ("swin_tiny", {"dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}),
    ],
)
def test_only_matrices_and_kernels_decay(name, fields):
    params = shapes(name, **fields)
    decays = by_name(params, groups_of(params, OptimizerConfig()).decays)
    assert all(decays == name.endswith("/kernel") for name, decays in decays.items())
    assert any(decays.values()) and not all(decays.values())


def test_tokens_tables_and_positions_of_other_names_do_not_decay():
    shape = jnp.zeros((2, 2))
    tree = {"relative_position_bias_table": shape, "absolute_pos_embed": shape, "mask_token": shape, "q": {"bias": shape}, "kernel": shape}
    decays = by_name(tree, groups_of(tree, OptimizerConfig()).decays)
    assert [name for name, value in decays.items() if value] == ["kernel"]


def test_depth_goes_through_the_blocks_of_all_stages_in_natural_order():
    names = [
        "stem/kernel",
        *(f"stages/{s}/blocks/{b}/kernel" for s in (1, 0) for b in range(11)),
        "stages/1/downsample/kernel",
        "head/kernel",
    ]
    depths = layer_depths(names)
    assert depths["stem/kernel"] == 0 and depths["head/kernel"] == 23
    assert depths["stages/0/blocks/10/kernel"] == 11  # not after blocks/1
    assert depths["stages/1/blocks/0/kernel"] == 12 == depths["stages/1/downsample/kernel"]


@pytest.mark.parametrize("pattern", ["vit_tiny_patch16", "swin_tiny", "nat_mini", "efficientvit_m0", "spectformerh_small", "crossvit_9"])
def test_the_blocks_of_every_way_to_name_them_are_found(pattern):
    (name,) = list_models(pattern)
    depths = layer_depths(leaf_names(shapes(name)))
    assert set(depths.values()) == set(range(max(depths.values()) + 1)) and max(depths.values()) > 5


def test_a_group_changes_rate_and_decay():
    params = {"blocks": {"0": {"kernel": jnp.zeros((2, 2))}}, "head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    groups = groups_of(params, OptimizerConfig(groups=("^blocks/ frozen", "^head/ lr=10 decay=off")))
    assert by_name(params, groups.scales) == {"blocks/0/kernel": 0.0, "head/bias": 10.0, "head/kernel": 10.0}
    assert by_name(params, groups.decays) == {"blocks/0/kernel": True, "head/bias": False, "head/kernel": False}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (("^head/ lr=10",), r"exactly one of optimizer.groups; blocks/kernel matches none"),
        (("kernel lr=10", "."), r'head/bias matches|blocks/kernel matches "kernel lr=10" and "."'),
        (("^blocks lr=ten", "head"), r'group "\^blocks lr=ten" must be a regex and any of'),
        (("^blocks decay=maybe", "head"), "must be a regex and any of"),
        (("(blocks", "head"), "must be a regex and any of"),
    ],
)
def test_groups_that_do_not_part_the_parameters_are_refused(groups, words):
    params = {"blocks": {"kernel": jnp.zeros((2, 2))}, "head": {"bias": jnp.zeros(2)}}
    with pytest.raises(ConfigError, match=words):
        groups_of(params, OptimizerConfig(groups=groups))

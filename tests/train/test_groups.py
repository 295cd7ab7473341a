import jax
import jax.numpy as jnp
import pytest

from vitlab.config import ConfigError, OptimizerConfig
from vitlab.layers.roles import Place
from vitlab.train.groups import groups_of
from vitlab.tree import leaf_names


def by_name(params, tree):
    return dict(zip(leaf_names(params), jax.tree.leaves(tree), strict=True))


def groups(params, **options):
    """Returns the groups of parameters without roles."""
    return groups_of(params, jax.tree.map(lambda _: Place(), params), OptimizerConfig(**options))


def test_vectors_biases_tables_and_tokens_do_not_decay():
    table = jnp.zeros((2, 2))
    params = {"kernel": table, "table": table, "token": table, "q": {"bias": table, "rel_pos_bias": table}, "scale": jnp.zeros(2)}
    places = {name: Place() for name in params} | {"q": {"bias": Place(), "rel_pos_bias": Place()}}
    places |= {"table": Place(roles=frozenset({"position", "embedding"})), "token": Place(roles=frozenset({"token"}))}
    decays = by_name(params, groups_of(params, places, OptimizerConfig()).decays)
    assert [name for name, value in decays.items() if value] == ["kernel", "q/rel_pos_bias"]  # a name alone gives no role


def test_layer_decay_counts_the_layers_up_to_the_head():
    params = {name: jnp.zeros(2) for name in ("embed", "first", "second", "head")}
    places = {name: Place(depth=i) for i, name in enumerate(params)}
    scales = groups_of(params, places, OptimizerConfig(layer_decay=0.5, groups=("^first lr=3", "^(?!first)"))).scales
    assert by_name(params, scales) == {"embed": 1 / 8, "first": 3 / 4, "head": 1.0, "second": 1 / 2}


def test_layer_decay_of_a_model_that_declares_no_layers_is_refused():
    with pytest.raises(ConfigError, match=r"layer_decay=0\.5 needs the depth of each parameter: declare `layers`"):
        groups({"kernel": jnp.zeros((2, 2))}, layer_decay=0.5)


def test_a_group_changes_rate_and_decay():
    params = {"blocks": {"0": {"kernel": jnp.zeros((2, 2))}}, "head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    found = groups(params, groups=("^blocks/ lr=0 decay=on", "^head/ lr=10 decay=off"))
    assert by_name(params, found.scales) == {"blocks/0/kernel": 0.0, "head/bias": 10.0, "head/kernel": 10.0}
    assert by_name(params, found.decays) == {"blocks/0/kernel": True, "head/bias": False, "head/kernel": False}
    assert all(jax.tree.leaves(found.trained))  # a rate of zero does not freeze


def test_what_is_frozen_has_neither_rate_nor_decay():
    params = {"blocks": {"0": {"kernel": jnp.zeros((2, 2))}}, "head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    found = groups(params, groups=("^blocks/ frozen", "^head/ lr=10"))
    assert by_name(params, found.trained) == {"blocks/0/kernel": False, "head/bias": True, "head/kernel": True}
    assert found.scales == {"head": {"bias": 10.0, "kernel": 10.0}} and found.decays == {"head": {"bias": False, "kernel": True}}


def test_groups_that_freeze_everything_are_refused():
    with pytest.raises(ConfigError, match="freeze every parameter"):
        groups({"kernel": jnp.zeros((2, 2))}, groups=(". frozen",))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("^head/ lr=10",), r"exactly one of optimizer.groups; blocks/kernel matches none"),
        ((".", "^neck/ frozen"), "matches no parameter"),
        (("kernel lr=10", "."), r'head/bias matches|blocks/kernel matches "kernel lr=10" and "."'),
        (("^blocks lr=ten", "head"), r'group "\^blocks lr=ten" must be a regex and any of'),
        (("^blocks decay=maybe", "head"), "must be a regex and any of"),
        (("(blocks", "head"), "must be a regex and any of"),
    ],
)
def test_groups_that_do_not_part_the_parameters_are_refused(texts, words):
    params = {"blocks": {"kernel": jnp.zeros((2, 2))}, "head": {"bias": jnp.zeros(2)}}
    with pytest.raises(ConfigError, match=words):
        groups(params, groups=texts)

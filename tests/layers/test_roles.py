import jax.numpy as jnp
import pytest
from flax import nnx

from vitlab.layers.roles import Place, declare, places_of, stage_layers


class Stage(nnx.Module):
    """A down-sampling and two blocks."""

    def __init__(self, rngs):
        self.downsample = nnx.Linear(2, 2, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(2, 2, use_bias=False, rngs=rngs) for _ in range(2)])


class Model(nnx.Module):
    """An embedding, two stages and a head."""

    def __init__(self, rngs):
        self.embed = declare(nnx.Linear(2, 2, use_bias=False, rngs=rngs), "embedding")
        self.table = declare(nnx.Param(jnp.zeros((2, 2))), "position", "embedding")
        self.stages = nnx.List([Stage(rngs) for _ in range(2)])
        self.head = nnx.Linear(2, 2, use_bias=False, rngs=rngs)


def test_roles_add_up_and_reach_every_parameter_of_a_module():
    linear = declare(declare(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "position"), "head")
    roles = frozenset({"position", "head"})
    assert places_of(linear) == {"kernel": Place(roles=roles), "bias": Place(roles=roles)}


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match=r"roles=\['table'\] must be of \['position'"):
        declare(nnx.Param(jnp.zeros(2)), "table")


def test_depths_count_the_blocks_of_all_stages_and_all_else_in_a_stage_is_as_deep_as_its_first():
    places = places_of(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), lambda model: stage_layers(model.stages))
    depths = lambda stage: [stage["downsample"]["kernel"].depth, *(block["kernel"].depth for block in stage["blocks"].values())]  # noqa: E731
    assert [depths(stage) for stage in places["stages"].values()] == [[1, 1, 2], [3, 3, 4]]
    assert places["table"] == Place(roles=frozenset({"position", "embedding"}), depth=0)
    assert places["embed"]["kernel"].depth == 0 and places["head"]["kernel"].depth == 5


def test_without_layers_no_depth_is_known():
    assert places_of(Model(nnx.Rngs(0)))["head"]["kernel"] == Place()


def test_modules_in_a_tuple_are_equally_deep():
    places = places_of(Model(nnx.Rngs(0)), lambda model: [(model.stages[1], model.head), model.stages[0]])
    assert places["head"]["kernel"].depth == places["stages"][1]["downsample"]["bias"].depth == 1
    assert places["stages"][0]["blocks"][1]["kernel"].depth == 2

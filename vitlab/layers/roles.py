"""Roles of parameters in training, declared as metadata of NNX variables.

A role is declared where the parameter is created. The optimizer decides by roles whether weight
decay applies to a parameter, how far from the head it lies, and whether Muon may orthogonalise its
update. A parameter without a role is a weight of the network's trunk.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flax import nnx

ROLES: Mapping[str, str] = {
    "position": "a table of positions, absolute or relative, or the layers that compute such a table",
    "token": "a learned token: class, distillation or register",
    "dynamics": "rates and factors of the recurrence of a state-space model",
    "filter": "an array of products per element, which is no matrix between features",
    "embedding": "turns the image into the first features",
    "head": "turns the last features into logits",
}
Layers = Callable[[Any], Sequence[Any]]  # gives the model's layers for layer-wise decay, in the order of the forward pass
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Roles of a parameter, and its depth in the network."""

    roles: frozenset[str] = frozenset()  # keys of ROLES
    depth: int | None = None  # 0: embeds the image; i: in the i-th layer; number of layers + 1: after them; None: not declared


def declare(node: T, *roles: str) -> T:
    """Adds roles to a parameter, or to every parameter of a module, and returns `node`.

    Args:
      node: An `nnx.Param`, or a module whose parameters exist already.
      *roles: Keys of ROLES.

    Raises:
      ValueError: A role is not in ROLES.
    """
    if unknown := set(roles) - set(ROLES):
        raise ValueError(f"roles={sorted(unknown)} must be of {list(ROLES)}")
    for param in _params(node):
        param.set_metadata(roles=_roles(param) | set(roles))
    return node


def stage_layers(stages: Iterable[Any]) -> list[Any]:
    """Returns the blocks of all stages, in order.

    All else in a stage, such as its down-sampling, belongs to the layer of the stage's first block.
    """
    return [layer for stage in stages for layer in (stage, *list(stage.blocks)[1:])]


def places_of(model: Any, layers: Layers | None = None) -> dict[str, Any]:
    """Returns the place of each parameter of a model, real or abstract.

    Args:
      model: A module.
      layers: Gives a list of modules, or tuples of modules of equal depth; if a later one lies
        inside an earlier one, its parameters belong to the later. None: depths are unknown.

    Returns:
      A `Place` for each parameter, in nested dicts like the parameters.
    """
    found = None if layers is None else layers(model)
    depths = {id(param): i + 1 for i, layer in enumerate(found or ()) for param in _params(layer)}

    def place(param: Any) -> Place:
        roles = _roles(param)
        if found is None:
            return Place(roles=roles)
        return Place(roles=roles, depth=0 if "embedding" in roles else depths.get(id(param), len(found) + 1))

    state = nnx.state(model, nnx.Param)
    by_path = {path: place(node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    return nnx.traversals.unflatten_mapping({path: by_path[path] for path, _ in nnx.to_flat_state(state)})


def _params(node: Any) -> Iterator[Any]:
    """Yields the parameters of a variable, of a module, or of a tuple of modules."""
    for part in node if isinstance(node, tuple) else (node,):
        yield from (x for _, x in nnx.iter_graph(part) if isinstance(x, nnx.Param))


def _roles(param: Any) -> frozenset[str]:
    return param.get_metadata("roles", frozenset())

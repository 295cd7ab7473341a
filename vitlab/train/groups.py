"""The optimizer's treatment of each parameter: decay, rate, freezing.

It follows from the parameter's role, its depth, and the config's groups.
"""

import dataclasses
import re
from typing import Any

import jax

from vitlab.config import ConfigError, OptimizerConfig
from vitlab.functional import FunctionalModel, freeze
from vitlab.layers.roles import Place
from vitlab.tree import leaf_names, parted

_NEVER_DECAY = {"position", "token", "dynamics"}
# Roles of arrays that are no matrix between features of the network.
_NOT_MUON = {"position", "token", "dynamics", "filter", "embedding", "head"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Trees of Python values: `trained` like the parameters, the others like the trained ones."""

    trained: Any  # bool; False: the parameter is frozen
    decays: Any  # bool, whether weight decay applies
    scales: Any  # factor of the learning rate
    muon: Any  # bool, whether Muon orthogonalises the update


def groups_of(params: Any, places: Any, config: OptimizerConfig) -> Groups:
    """Decay, rate and freezing of each parameter.

    Arrays of at most one dimension, biases, position tables, tokens and a recurrence's dynamics do
    not decay. `layer_decay` multiplies the rate once for each layer between a parameter and the
    head: the layer-wise decay of BEiT (arXiv:2106.08254), with every block a layer.

    Args:
      params: Arrays or their shapes.
      places: The `Place` of each parameter.
      config: `groups` are texts "REGEX [lr=FACTOR] [decay=on|off] [frozen]"; the regex is searched
        in names such as "blocks/0/attn/qkv/kernel".

    Raises:
      ConfigError: A group is malformed or matches nothing, a parameter matches none or two of them,
        all parameters are frozen, or the family of the model does not declare its layers, which
        `layer_decay` needs.
    """
    leaves, treedef = jax.tree.flatten(params)
    names, all_places = leaf_names(params), jax.tree.leaves(places)
    groups = _assigned(names, config.groups) or [_Group()] * len(names)
    factors = _layer_factors(all_places, config.layer_decay)
    matrices = [leaf.ndim > 1 and name.split("/")[-1] != "bias" for name, leaf in zip(names, leaves, strict=True)]
    trained, decays, scales, muon = [], [], [], []
    for leaf, place, group, factor, matrix in zip(leaves, all_places, groups, factors, matrices, strict=True):
        trained.append(not group.frozen)
        decays.append(matrix and not place.roles & _NEVER_DECAY if group.decay is None else group.decay)
        scales.append(factor * group.factor)
        muon.append(matrix and leaf.ndim in (2, 4) and min(leaf.shape[-2:]) > 1 and not place.roles & _NOT_MUON)  # no depthwise kernels
    if not any(trained):
        raise ConfigError("optimizer.groups freeze every parameter, so nothing is left to train; take `frozen` out of one of them")
    mask = jax.tree.unflatten(treedef, trained)
    decays, scales, muon = (parted(jax.tree.unflatten(treedef, values), mask)[0] for values in (decays, scales, muon))
    return Groups(trained=mask, decays=decays, scales=scales, muon=muon)


def as_trained(model: FunctionalModel, config: OptimizerConfig) -> FunctionalModel:
    """The model with the parameters frozen that the config's groups freeze.

    Raises:
      ConfigError: The groups do not fit its parameters.
    """
    return freeze(model, groups_of(model.shapes["params"], model.places, config).trained)


def _layer_factors(places: list[Place], layer_decay: float) -> list[float]:
    """Factor of each parameter's rate by layer-wise decay."""
    if layer_decay == 1:
        return [1.0] * len(places)
    depths = [place.depth for place in places if place.depth is not None]
    if len(depths) < len(places):
        raise ConfigError(f"optimizer.{layer_decay=} needs the depth of each parameter: declare `layers` in the `FAMILY` of the model")
    return [layer_decay ** (max(depths) - depth) for depth in depths]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    pattern: re.Pattern[str] = re.compile("")
    factor: float = 1.0
    decay: bool | None = None
    frozen: bool = False


def _parse(text: str) -> _Group:
    regex, *settings = text.split()
    try:
        group = _Group(pattern=re.compile(regex))
        for setting in settings:
            key, _, value = setting.partition("=")
            if setting == "frozen":
                group = dataclasses.replace(group, frozen=True)
            elif key == "lr" and float(value) >= 0:
                group = dataclasses.replace(group, factor=float(value))
            elif key == "decay":
                group = dataclasses.replace(group, decay={"on": True, "off": False}[value])
            else:
                raise ValueError(setting)
    except (re.error, ValueError, KeyError) as error:
        rule = "must be a regex and any of lr=FACTOR, decay=on, decay=off, frozen"
        raise ConfigError(f'optimizer group "{text}" {rule} ({error})') from error
    return group


def _assigned(names: list[str], texts: tuple[str, ...]) -> list[_Group]:
    """The group of each name, which is exactly one; an empty list without groups."""
    if not texts:
        return []
    groups = [_parse(text) for text in texts]
    matching = [[i for i, group in enumerate(groups) if group.pattern.search(name)] for name in names]
    for name, found in zip(names, matching, strict=True):
        if len(found) != 1:
            which = " and ".join(f'"{texts[i]}"' for i in found) or "none"
            raise ConfigError(f"every parameter must match exactly one of optimizer.groups; {name} matches {which}")
    for i, text in enumerate(texts):
        if not any(i in found for found in matching):
            raise ConfigError(f'optimizer group "{text}" matches no parameter, such as {names[0]}')
    return [groups[found[0]] for found in matching]

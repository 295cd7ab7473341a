"""What sets parameters apart in the optimizer: decay, rate, frozen; by kind, by name and by depth."""

import dataclasses
import re
from typing import Any

import jax

from vitlab.config import ConfigError, OptimizerConfig
from vitlab.tree import leaf_names

# Beside these, nothing with one dimension or none decays: biases, scales of norms and of layer scale.
_NO_DECAY = re.compile(r"(^|/)(\w*pos_embed|\w+_token|register_tokens|rel_pos_bias|\w*bias_table|bias)$")
_BLOCK = re.compile(r"(?:(?P<stage>\w+/\d+)/)?(?P<list>blocks)/(?P<block>\d+)/")
_STAGE = re.compile(r"(?P<stage>\w+/\d+)/")
_EMBEDDING = re.compile(r"(stem|patch_embed\w*|pos_embed\w*|embeddings?|embed_norm|\w+_token|register_tokens)(/|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Trees like the parameters' of Python values."""

    decays: Any  # bool
    scales: Any  # float, of the learning rate; 0: frozen


def groups_of(params: Any, config: OptimizerConfig) -> Groups:
    """Decay, rate and freezing of each parameter.

    Args:
      params: Arrays or their shapes.
      config: `groups` are texts "REGEX [lr=FACTOR] [decay=on|off] [frozen]"; the regex is searched in names such as
        "blocks/0/attn/qkv/kernel". `layer_decay` multiplies the rate once for each block between a parameter and the head.

    Raises:
      ConfigError: A group is malformed or matches nothing, or a parameter matches none or two of them.
    """
    leaves, treedef = jax.tree.flatten(params)
    names = leaf_names(params)
    decays = [leaf.ndim > 1 and not _NO_DECAY.search(name) for name, leaf in zip(names, leaves, strict=True)]
    scales = [1.0] * len(names)
    if config.layer_decay != 1:
        depths = layer_depths(names)
        scales = [config.layer_decay ** (max(depths.values()) - depths[name]) for name in names]
    for i, group in enumerate(_assigned(names, config.groups)):
        scales[i] *= group.factor
        decays[i] = decays[i] if group.decay is None else group.decay
    return Groups(decays=jax.tree.unflatten(treedef, decays), scales=jax.tree.unflatten(treedef, scales))


def layer_depths(names: list[str]) -> dict[str, int]:
    """Depth of each parameter: 0 for what embeds, then one for each block in the order of the forward pass, one more for the head.

    What belongs to a stage but to no block of it, such as a downsampling, counts as the stage's first block. This is the layer-wise
    decay of BEiT (arXiv:2106.08254) with every block a layer.
    """
    blocks: dict[tuple[Any, ...], int] = {}
    matches = {name: _BLOCK.match(name) for name in names}
    for name in names:
        if match := matches[name]:
            blocks.setdefault(_block_key(match), 0)
    order = {key: i + 1 for i, key in enumerate(sorted(blocks))}
    first = {key[0]: min(i for k, i in order.items() if k[0] == key[0]) for key in order}
    out = {}
    for name in names:
        stage = _STAGE.match(name)
        if match := matches[name]:
            out[name] = order[_block_key(match)]
        elif stage and _natural(stage["stage"]) in first:
            out[name] = first[_natural(stage["stage"])]
        else:
            out[name] = 0 if _EMBEDDING.match(name) else len(order) + 1
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    pattern: re.Pattern[str]
    factor: float = 1.0
    decay: bool | None = None


def _parse(text: str) -> _Group:
    regex, *settings = text.split()
    try:
        group = _Group(pattern=re.compile(regex))
        for setting in settings:
            key, _, value = setting.partition("=")
            if setting == "frozen":
                group = dataclasses.replace(group, factor=0.0)
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
    """The one group of each name; none at all without groups."""
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


def _natural(text: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in text.split("/"))


def _block_key(match: re.Match[str]) -> tuple[Any, ...]:
    return (_natural(match["stage"]) if match["stage"] else (), int(match["block"]))

"""Conversion of an experiment to and from `ml_collections.ConfigDict` and JSON.

A config file's `get_config(variant)` returns `to_config_dict(Experiment(...))`: every key exists,
is typed and can be overridden with `--config.a.b=x`. The program itself passes only the frozen
dataclasses.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from pallas_kernels.command_line import near_misses
from vitlab.config.errors import ConfigError
from vitlab.config.experiment import Experiment
from vitlab.config.values import frozen, is_optional, leaf_types, plain_type, shown, type_name


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as nested dicts, JSON-serialisable except for tuples.

    Fields of the model's family and options of the task are merged into their groups.
    """
    out = dataclasses.asdict(experiment)
    for group in ("model", "task"):
        out[group] |= out[group].pop("fields")
    return out


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The `ConfigDict` that a config file returns: typed, locked, None as a placeholder."""
    types_ = leaf_types(Experiment)

    def convert(tree: Mapping, path: tuple[str, ...]) -> ml_collections.ConfigDict:
        out = ml_collections.ConfigDict()
        for key, value in tree.items():
            here = (*path, key)
            if isinstance(value, Mapping):
                out[key] = convert(value, here)
            elif value is None or (here in types_ and is_optional(types_[here])):
                out[key] = config_dict.placeholder(_class_of(types_.get(here, object)))
                out[key] = value
            else:
                out[key] = value
        return out

    return convert(to_dict(experiment), ()).lock()


def from_config_dict(config: Any) -> Experiment:
    """The experiment of a `ConfigDict`, or of the parsed contents of `config.json`.

    Raises:
      ConfigError: The argument is no mapping, has an unknown key (the message names similar keys),
        a value of another type than the key's, or a value out of bounds.
    """
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return _group(Experiment, plain, ())


def to_json(experiment: Experiment) -> str:
    """The text of `config.json`; `from_config_dict(json.loads(text))` restores the experiment."""
    return json.dumps(to_dict(experiment), indent=2) + "\n"


def difference(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """The leaves that differ: dotted path -> (old value, new value); None for an absent leaf."""
    a, b = (_flatten(json.loads(to_json(e))) for e in (old, new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def _group(cls: Any, tree: Any, path: tuple[str, ...]) -> Any:
    """Builds the group of keys `cls` from a mapping."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{'.'.join(path) or 'the config'}={shown(tree)} must be {type_name(cls)}")
    fields = {field.name for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    extra = {key: value for key, value in tree.items() if key not in fields or key == "fields"}
    values = {key: _entry(value, hints[key], (*path, key)) for key, value in tree.items() if key not in extra}
    if "fields" in fields:
        values["fields"] = frozen(extra)
    elif extra:
        raise ConfigError(_unknown(str(next(iter(extra))), path, fields))
    return cls(**{key: cls.checked(key, value) for key, value in values.items()})


def _entry(value: Any, hint: Any, path: tuple[str, ...]) -> Any:
    """The value with mappings converted to groups; the group that holds the key checks the rest."""
    if dataclasses.is_dataclass(hint):
        return _group(hint, value, path)
    entry = next(iter(typing.get_args(hint)), None)
    if dataclasses.is_dataclass(entry) and isinstance(value, (list, tuple)):
        return tuple(_group(entry, one, path) for one in value)
    return value


def _unknown(key: str, path: tuple[str, ...], fields: set[str]) -> str:
    """The error about an unknown key; it names groups that have such a key, or similar keys."""
    text = f"unknown key {shown('.'.join((*path, key)))[1:-1]}: "
    elsewhere = [".".join(leaf) for leaf in leaf_types(Experiment) if leaf[-1] == key and leaf[-1] != "fields"]
    return text + (f"did you mean {', '.join(elsewhere)}?" if elsewhere else near_misses(key, fields))


def _class_of(hint: Any) -> type:
    """The class that `ConfigDict` checks the values of a key against."""
    plain = plain_type(hint)
    if typing.get_origin(plain) is typing.Literal:
        return type(typing.get_args(plain)[0])
    return typing.get_origin(plain) or plain


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out

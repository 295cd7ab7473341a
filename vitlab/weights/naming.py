"""Chooses the name map and the prefix of a checkpoint's names, and converts names both ways."""

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vitlab.weights.rules import Layout, NameMap

# Last part of a foreign name -> possible last parts of the parameter's name in the model.
_LEAVES = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",), "running_var": ("var",)}
# Attributes in which wrappers keep a network: torch's DDP and AveragedModel, Lightning, trainers,
# self-supervision.
_WRAPPERS = {"module", "model", "backbone", "encoder", "teacher", "student", "base_encoder", "visual", "trunk", "net", "network"}
# Attributes in Hugging Face's classes, and names in big_vision's trees.
_WRAPPERS |= {"vit", "deit", "beit", "ijepa", "dinov2", "dinov2_with_registers", "vision_model", "swin", "params", "img"}
_COMPILED = "_orig_mod."  # added by torch.compile before the names of any part
_ROOMS = re.compile(r"vitlab\.(?:models|heads|layers|mixers)\.")  # packages whose modules have name maps
_OWN = (NameMap(source="vitlab"),)


def maps_of(model: Any) -> tuple[NameMap, ...]:
    """The name maps of a model's family or of a head.

    A module from elsewhere has only a map of its own attribute names.
    """
    module = type(model).__module__
    name = f"vitlab.weights.names.{_ROOMS.sub('', module, count=1)}"
    if _ROOMS.match(module) is None or importlib.util.find_spec(name) is None:
        return _OWN
    return importlib.import_module(name).MAPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
    """A name map, and the prefix before a checkpoint's names."""

    name_map: NameMap
    prefix: str = ""

    def places(self, foreign: str, targets: Collection[str]) -> list[tuple[str, str | None, tuple[Layout, ...]]]:
        """The places of a foreign tensor: mapped name, parameter or None, changes of layout.

        There is one place for each parameter that takes values of the tensor; if there is none, one
        place without a parameter.
        """
        found = [(name, _target(name, targets), layouts) for name, layouts in self.name_map.apply_all(self.strip(foreign))]
        return [place for place in found if place[1] is not None] or found[:1]

    def prefixes_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """The prefixes that `strip` removes from these names."""
        compiled = any(_uncompiled(name) != name for name in names)
        return (*[self.prefix] * bool(self.prefix), *[_COMPILED] * compiled)

    def strip(self, foreign: str) -> str:
        """A foreign name without the wrappers' prefix."""
        return _uncompiled(foreign).removeprefix(self.prefix)

    def is_ignored(self, foreign: str, patterns: Iterable[str]) -> bool:
        """Whether a pattern is found in a foreign name without its prefix.

        Of a name that has only the first parts of the prefix these are left out.
        """
        name, prefix = _uncompiled(foreign), self.prefix
        while not name.startswith(prefix):
            prefix = prefix[: prefix[:-1].rfind(".") + 1]
        return any(re.search(pattern, n) for pattern in patterns for n in (self.strip(foreign), name.removeprefix(prefix)))


def find_naming(names: Iterable[str], targets: Collection[str], maps: tuple[NameMap, ...]) -> Naming:
    """Finds the prefix and the map that turn most names into names of parameters.

    Ties go to the shortest prefix and the first map.
    """
    names = sorted({_uncompiled(name) for name in names})
    candidates = [Naming(name_map=m, prefix=prefix) for prefix in _prefixes(names) for m in maps if not _is_other(prefix, m)]
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=lambda naming: len({place[1] for name in names for place in naming.places(name, targets)} - {None}))


def _is_other(prefix: str, name_map: NameMap) -> bool:
    """Whether a prefix is that of a part which a map passes over, such as the image tower beside a
    text tower.
    """
    return bool(prefix) and any(re.search(pattern, prefix) for pattern in name_map.ignored)


def foreign_names(names: Iterable[str], maps: tuple[NameMap, ...]) -> dict[str, tuple[str, tuple[Layout, ...]]]:
    """The foreign name of each parameter, and the layouts to invert.

    Of several parts the first one is named.

    Raises:
      ValueError: See `foreign_parts`.
    """
    return {name: parts[0] for name, parts in foreign_parts(names, maps).items()}


def foreign_parts(names: Iterable[str], maps: tuple[NameMap, ...]) -> dict[str, list[tuple[str, tuple[Layout, ...]]]]:
    """The foreign names of each parameter, one per part, and the layouts to invert.

    Raises:
      ValueError: A parameter has no foreign name, or two have the same.
    """
    names = list(names)
    lines = "\n".join(names)
    chosen = next((m for m in maps if re.search(m.suits, lines, re.MULTILINE)), maps[-1])
    out = {name: _foreign(name, names, chosen) for name in names}
    owners: dict[str, str] = {}
    for name, parts in out.items():
        for foreign, _ in parts:
            if foreign in owners:
                raise ValueError(f"{name} and {owners[foreign]} would both be called {foreign} in a checkpoint of {chosen.source}")
            owners[foreign] = name
    return out


def _foreign(name: str, names: Collection[str], name_map: NameMap) -> list[tuple[str, tuple[Layout, ...]]]:
    stem, _, leaf = name.rpartition(".")
    candidates = [f"{stem}.{there}" if stem else there for there, here in _LEAVES.items() if leaf in here]
    for candidate in (*candidates, name):
        parts = name_map.undo_all(candidate)
        if parts and _target(name_map.apply(parts[0][0])[0], names) == name:
            return parts
    raise ValueError(f"{name} has no name in checkpoints of {name_map.source}")


def _target(name: str, targets: Collection[str] | Mapping[str, Any]) -> str | None:
    if name in targets:
        return name
    stem, _, leaf = name.rpartition(".")
    candidates = (f"{stem}.{here}" if stem else here for here in _LEAVES.get(leaf, ()))
    return next((c for c in candidates if c in targets), None)


def _uncompiled(name: str) -> str:
    return re.sub(rf"(^|\.){re.escape(_COMPILED)}", r"\1", name)


def _prefixes(names: Iterable[str]) -> list[str]:
    """All wrapper prefixes of the names, shortest first, including ""."""
    found = {""}
    for name in names:
        prefix = ""
        for part in name.split(".")[:-1]:
            if part not in _WRAPPERS:
                break
            prefix += f"{part}."
            found.add(prefix)
    return sorted(found, key=lambda prefix: (len(prefix), prefix))

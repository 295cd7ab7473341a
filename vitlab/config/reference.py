"""The keys of an experiment as text: name, value or default, allowed values and meaning."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from vitlab.config.experiment import Experiment
from vitlab.config.group import Group, Key, keys_of

_WIDTH = 110  # columns of the text


def walk(cls: type[Group], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Group], dict[str, Key]]]:
    """Each group of keys below a class, outermost first, as (path, class, keys).

    The keys of nested groups come with those groups.
    """
    keys = keys_of(cls)
    leaves = {name: key for name, key in keys.items() if not dataclasses.is_dataclass(key.plain) and name != "fields"}
    yield path, cls, leaves
    for name, key in keys.items():
        if dataclasses.is_dataclass(key.plain):
            yield from walk(typing.cast(type[Group], key.plain), (*path, name))


def describe(experiment: Experiment | None = None) -> str:
    """All keys as text, with the values of an experiment, or with their defaults."""
    blocks = []
    for path, cls, keys in walk(Experiment):
        group = _at(experiment, path) if experiment is not None else None
        head = f"# {'.'.join(path) or 'the experiment'}: {' '.join((cls.__doc__ or '').split())}"
        entries = [_entry((*path, name), key, group) for name, key in keys.items()]
        blocks.append("\n".join([textwrap.fill(head, _WIDTH, subsequent_indent="#   "), *entries]))
    return "\n\n".join(blocks)


def markdown() -> str:
    """All keys as Markdown, one table for each group."""
    blocks = []
    for path, cls, keys in walk(Experiment):
        rows = [
            f"| `{'.'.join((*path, name))}` | {_cell(key.rule)} | `{_cell(repr(key.default))}` | {_cell(key.meaning)} |"
            for name, key in keys.items()
        ]
        head = f"## {'.'.join(path) or 'The experiment'}\n\n{' '.join((cls.__doc__ or '').split())}\n"
        blocks.append("\n".join([head, "| key | values | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(blocks)


def _at(experiment: Experiment, path: tuple[str, ...]) -> Any:
    group: Any = experiment
    for name in path:
        group = getattr(group, name)
    return group


def _entry(path: tuple[str, ...], key: Key, group: Any) -> str:
    value = key.default if group is None else getattr(group, path[-1])
    default = "" if value == key.default else f" (default {key.default!r})"
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    texts = [wrapper.fill(text) for text in (key.meaning, f"[{key.rule}]")]
    return "\n".join([f"{'.'.join(path)} = {value!r}{default}", *texts])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

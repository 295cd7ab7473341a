"""The parts of a name map: rules that rename the tensors of a foreign checkpoint, read in both directions."""

import abc
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

_FIELD = re.compile(r"\{(?:(?P<factor>\d+)?(?P<name>[a-z])(?P<offset>[+-]\d+)?|(?P<word>[a-z]):(?P<words>[^}]+))\}")


class Layout(abc.ABC):
    """A change of the axes of a tensor that a renaming implies, in both directions.

    Both methods raise a ValueError for a tensor that cannot have that layout.
    """

    @abc.abstractmethod
    def forward(self, value: np.ndarray) -> np.ndarray:
        """The foreign tensor in the layout of this project."""

    @abc.abstractmethod
    def inverse(self, value: np.ndarray) -> np.ndarray:
        """The tensor of this project in the foreign layout."""


@dataclasses.dataclass(frozen=True)
class Axes(Layout):
    """Axes in another order, with or without axes of length one, such as Axes("1nah1", "nah").

    A tensor with as many axes as the other side has is left as it is: a 1 x 1 convolution and a linear layer are the same
    parameter, and checkpoints of one network differ in which they hold.
    """

    foreign: str  # one letter an axis, "1" for an axis of length one
    here: str

    def forward(self, value: np.ndarray) -> np.ndarray:
        return _rearranged(value, self.foreign, self.here)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return _rearranged(value, self.here, self.foreign)


def _rearranged(value: np.ndarray, old: str, new: str) -> np.ndarray:
    if value.ndim == len(new) != len(old):
        return value
    if value.ndim != len(old) or any(axis == "1" and size != 1 for axis, size in zip(old, value.shape, strict=True)):
        raise ValueError(f"shape {value.shape} is not of the form ({', '.join(old)})")
    value = value.reshape([size for axis, size in zip(old, value.shape, strict=True) if axis != "1"])
    order = [old.replace("1", "").index(axis) for axis in new.replace("1", "")]
    value = value.transpose(order)
    return value[tuple(None if axis == "1" else slice(None) for axis in new)]


class ChannelMap(Layout):
    """A table [1, channels, rows, columns], of a square, as [1, positions, channels]; one of that form is left as it is."""

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 3:
            return value
        if value.ndim != 4 or value.shape[0] != 1:
            raise ValueError(f"shape {value.shape} must be (1, channels, rows, columns)")
        return value.reshape(*value.shape[:2], -1).swapaxes(1, 2)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        side = math.isqrt(value.shape[1])
        return value.swapaxes(1, 2).reshape(1, -1, side, side)


class SquareTable(Layout):
    """A table [positions, heads] or, with `heads_first`, [heads, positions] of a square of positions, as [heads, side, side]."""

    def __init__(self, *, heads_first: bool = False):
        self.heads_first = heads_first

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 2:
            raise ValueError(f"a table of shape {value.shape} must have two axes, positions and heads")
        table = value if self.heads_first else value.T
        side = math.isqrt(table.shape[1])
        if side**2 != table.shape[1] or not side:
            raise ValueError(f"a table of {table.shape[1]} positions is not of a square window")
        return table.reshape(-1, side, side)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        table = value.reshape(value.shape[0], -1)
        return table if self.heads_first else table.T


class FlatTable(Layout):
    """A table [positions, heads] as [heads, positions], of a map that need not be square: `fit` knows its rows and columns."""

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 2:
            raise ValueError(f"a table of shape {value.shape} must have two axes, positions and heads")
        return value.T

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(value.shape[0], -1).T


class Flipped(Layout):
    """Both position axes of a table [heads, y, x] reversed, as key - query is the opposite of query - key."""

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 3:
            raise ValueError(f"a table of shape {value.shape} must have three axes, heads and two of positions")
        return np.flip(value, (1, 2))

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return self.forward(value)


class LastFirst(Layout):
    """The last row of a table [1, positions, dim] in front of the others: that of a class token behind its patches."""

    def forward(self, value: np.ndarray) -> np.ndarray:
        return np.roll(value, 1, axis=1)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return np.roll(value, -1, axis=1)


class MiddleFirst(Layout):
    """The middle row of a table [1, positions, dim] in front of the others: that of a class token amid its patches."""

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 3 or not value.shape[1]:
            raise ValueError(f"shape {value.shape} must be (1, positions, dim)")
        middle = (value.shape[1] - 1) // 2
        return np.concatenate((value[:, middle : middle + 1], value[:, :middle], value[:, middle + 1 :]), 1)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        middle = (value.shape[1] - 1) // 2
        return np.concatenate((value[:, 1 : middle + 1], value[:, :1], value[:, middle + 1 :]), 1)


class ClassLast(Layout):
    """A table [relative positions and, last, three entries of the class token; heads] as [1, these three and positions, heads]."""

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 2 or len(value) <= 3:
            raise ValueError(f"shape {value.shape} must be (more than 3 positions, heads)")
        return np.roll(value, 3, 0)[None]

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return np.roll(value[0], -3, 0)


@dataclasses.dataclass(frozen=True)
class Grouped(Layout):
    """The first axis, of `count` groups one after the other, as two axes: (groups, ...)."""

    count: int

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 0 or len(value) % self.count:
            raise ValueError(f"shape {value.shape} has not {self.count} equal groups")
        return value.reshape(self.count, -1, *value.shape[1:])

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(-1, *value.shape[2:])


@dataclasses.dataclass(frozen=True)
class Inverse(Layout):
    """A layout read the other way: its foreign form is the one here."""

    layout: Layout

    def forward(self, value: np.ndarray) -> np.ndarray:
        return self.layout.inverse(value)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return self.layout.forward(value)


@dataclasses.dataclass(frozen=True)
class Part(Layout):
    """The foreign tensor is part `index` of `count` equal ones, which joined along their first axis are the tensor here."""

    index: int
    count: int

    def forward(self, value: np.ndarray) -> np.ndarray:
        return value

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return np.split(value, self.count)[self.index]


class ReadOnly(Layout):
    """A layout of names in which nothing is saved."""

    def inverse(self, value: np.ndarray) -> np.ndarray:
        raise ValueError(f"{self} is not undone: these names are read only")


@dataclasses.dataclass(frozen=True)
class Share(ReadOnly):
    """The tensor here is the equal shares `start` to `stop` of `count` along the foreign one's first axis."""

    start: int
    stop: int
    count: int

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 0 or len(value) % self.count:
            raise ValueError(f"shape {value.shape} has not {self.count} equal shares")
        size = len(value) // self.count
        return value[self.start * size : self.stop * size]


@dataclasses.dataclass(frozen=True)
class Tokens(ReadOnly):
    """Some of the tokens of [1, tokens, dim], of which there must be one at least."""

    start: int
    stop: int | None

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 3 or value.shape[1] <= self.start:
            raise ValueError(f"shape {value.shape} must be (1, tokens, dim) with more than {self.start} tokens")
        return value[:, self.start : self.stop]


class Summand(Tokens):
    """Tokens that are added to what another tensor gives the same parameter."""


class Projected(ReadOnly):
    """A kernel or bias of Flax's attention, whose heads have an axis of their own, as torch keeps that of a linear layer.

    With `out` the kernel is [heads, head_dim, out], else [in, heads, head_dim] and the bias [heads, head_dim].
    """

    def __init__(self, *, out: bool = False):
        self.out = out

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim not in (2, 3):
            raise ValueError(f"shape {value.shape} is none of a projection to heads, or from heads")
        if value.ndim == 2:
            return value.reshape(-1)
        return value.reshape(-1, value.shape[2]).T if self.out else value.reshape(value.shape[0], -1).T


@dataclasses.dataclass(frozen=True)
class Rule:
    """Two templates of a part of a name, the foreign one and the one here, and the change of layout that goes with it.

    A template is text with fields: `{i}` is a number and `{2i+1}` one that is computed from it; `{x:conv|norm}` is one of the
    words, `{x}` the same word in the other template. "^" at its start and "$" at its end stand for the ends of the name;
    without them every occurrence is replaced. Both templates have the same fields, so that a rule can be read backwards.
    """

    foreign: str
    here: str
    layout: Layout | None = None

    def apply(self, name: str) -> str | None:
        """The name with the foreign part replaced, or None without such a part."""
        return _substitution(self.foreign, self.here)(name)

    def undo(self, name: str) -> str | None:
        """The name with the part here replaced by the foreign one, or None without such a part."""
        return _substitution(self.here, self.foreign)(name)


def pointwise(*templates: str) -> tuple[Rule, ...]:
    """Rules for linear layers here, by templates of their names without the leaf, that are 1 x 1 convolutions in the checkpoint."""
    return tuple(Rule(f"{t}.weight$", f"{t}.weight$", Axes("oi11", "oi")) for t in templates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameMap:
    """The names of one source's checkpoints of a family. Rules are applied in order, each to the result of the one before."""

    source: str  # origin of these names, "timm" or a repository
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()  # regular expressions of foreign names without a parameter here
    suits: str = ""  # regular expression that is found in the names here, a line each, of the networks that are saved in these names
    copies: tuple[Rule, ...] = ()  # each gives a tensor that it matches a second name, to which `rules` apply as to the first
    deployed: str = ""  # regular expression of foreign names that only files of the deployed form have, whose branches are fused
    zeros: str = ""  # regular expression of parameters here that are zero where a checkpoint has none of them

    def apply(self, name: str) -> tuple[str, tuple[Layout, ...]]:
        """A foreign name as it is here, and the layouts to apply, in order."""
        name, applied = self._apply(name)
        return name, tuple(rule.layout for rule in applied if rule.layout is not None)

    def apply_all(self, name: str) -> list[tuple[str, tuple[Layout, ...]]]:
        """`apply` for every name that a foreign tensor gets here: most get one."""
        out = [self.apply(name)]
        for rule in self.copies:
            second = rule.apply(name)
            if second is not None:
                here, layouts = self.apply(second)
                out.append((here, layouts if rule.layout is None else (rule.layout, *layouts)))
        return out

    def undo(self, name: str) -> tuple[str, tuple[Layout, ...]] | None:
        """The foreign name of a name here, and the layouts whose inverse to apply, in order; None where there is none.

        The rules are read backwards, the last one first. A rule is left out where the result would not come back by `apply`.
        """
        return next(iter(self.undo_all(name)), None)

    def undo_all(self, name: str) -> list[tuple[str, tuple[Layout, ...]]]:
        """`undo` for every foreign tensor of which the one here consists: as many as it has parts, or one, or none."""
        found: dict[int, tuple[str, tuple[Layout, ...]]] = {}
        for foreign, undone in _undone(name, self.rules):
            if self._apply(foreign) == (name, undone[::-1]):
                layouts = tuple(rule.layout for rule in undone if rule.layout is not None)
                part = part_of(layouts)
                if part is None:
                    return [found[i] for i in sorted(found)] or [(foreign, layouts)]
                found.setdefault(part.index, (foreign, layouts))
                if len(found) == part.count:
                    break
        return [found[i] for i in sorted(found)]

    def _apply(self, name: str) -> tuple[str, tuple[Rule, ...]]:
        applied = []
        for rule in self.rules:
            new = rule.apply(name)
            if new is not None:
                applied.append(rule)
                name = new
        return name, tuple(applied)


def part_of(layouts: tuple[Layout, ...]) -> Part | None:
    """The part of another tensor that these layouts make of one; None where they give it whole."""
    return next((layout for layout in layouts if isinstance(layout, Part)), None)


def _undone(name: str, rules: tuple[Rule, ...]) -> Iterator[tuple[str, tuple[Rule, ...]]]:
    """All names from which the rules, or some of them, may make this one, and the rules in the order in which they are undone."""
    for i in range(len(rules) - 1, -1, -1):
        before = rules[i].undo(name)
        if before is not None:
            for foreign, undone in _undone(before, rules[:i]):
                yield foreign, (rules[i], *undone)
    yield name, ()


@functools.cache
def _substitution(old: str, new: str) -> Callable[[str], str | None]:
    """A function that replaces the parts of a name that fit a template; None where no part does."""
    fields = [m for m in _FIELD.finditer(old)]
    words = {m["word"]: m["words"] for t in (old, new) for m in _FIELD.finditer(t) if m["word"]}
    pattern = re.compile(_pattern(old, words))
    fixed = max(_FIELD.sub("\0", old.removeprefix("^").removesuffix("$")).split("\0"), key=len)  # in every name that fits

    def replaced(match: re.Match[str]) -> str | None:
        values: dict[str, str | int] = {}
        for field, text in zip(fields, match.groups(), strict=True):
            name = field["name"] or field["word"]
            if name in words:
                values[name] = text
                continue
            value, rest = divmod(int(text) - int(field["offset"] or 0), int(field["factor"] or 1))
            if rest or value < 0:
                return None
            values[name] = value
        return _written(new, values)

    def substitute(name: str) -> str | None:
        if fixed not in name:  # most names fit no rule, and this is quicker than the pattern
            return None
        found = [(m, text) for m in pattern.finditer(name) if (text := replaced(m)) is not None]
        for match, text in reversed(found):
            name = name[: match.start()] + text + name[match.end() :]
        return name if found else None

    return substitute


def _pattern(template: str, words: dict[str, str]) -> str:
    body = template.removeprefix("^").removesuffix("$")
    out, end = "", 0
    for field in _FIELD.finditer(body):
        options = words.get(field["name"] or field["word"])
        out += re.escape(body[end : field.start()]) + (r"(\d+)" if options is None else f"({options})")
        end = field.end()
    return "^" * template.startswith("^") + out + re.escape(body[end:]) + "$" * template.endswith("$")


def _written(template: str, values: dict[str, str | int]) -> str | None:
    """A template with its fields filled in; None where a number would be negative."""
    negative = False

    def fill(field: re.Match[str]) -> str:
        nonlocal negative
        value = values[field["name"] or field["word"]]
        if isinstance(value, str):
            return value
        number = int(field["factor"] or 1) * value + int(field["offset"] or 0)
        negative |= number < 0
        return str(number)

    text = _FIELD.sub(fill, template.removeprefix("^").removesuffix("$"))
    return None if negative else text

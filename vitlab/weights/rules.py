"""Parts of a name map: rules that rename the tensors of a checkpoint, in both directions.

Names and layouts of a checkpoint of timm or the authors are called foreign; names and layouts
"here" are those of the zoo's models.
"""

import abc
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

_FIELD = re.compile(r"\{(?:(?P<factor>\d+)?(?P<name>[a-z])(?P<offset>[+-]\d+)?|(?P<word>[a-z]):(?P<words>[^}]+))\}")


class Layout(abc.ABC):
    """A change of a tensor's axes that goes with a renaming, in both directions.

    Both methods raise ValueError for a tensor that cannot have that layout.
    """

    @abc.abstractmethod
    def forward(self, value: np.ndarray) -> np.ndarray:
        """Converts a foreign tensor to the layout here."""

    @abc.abstractmethod
    def inverse(self, value: np.ndarray) -> np.ndarray:
        """Converts a tensor to the foreign layout."""


@dataclasses.dataclass(frozen=True)
class Axes(Layout):
    """Reorders axes and adds or removes axes of length one: Axes("1nah1", "nah").

    A tensor that has the other side's number of axes already is left as it is: a 1 x 1 convolution
    and a linear layer are the same parameter, and checkpoints of one network may hold either.
    """

    foreign: str  # one letter per axis, "1" for an axis of length one
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
    """Converts a table [1, channels, rows, columns] of a square to [1, positions, channels].

    A table in the latter form is left as it is.
    """

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
    """Converts a table [positions, heads] of a square of positions to [heads, side, side].

    With `heads_first` the foreign table is [heads, positions].
    """

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
    """Converts a table [positions, heads] to [heads, positions].

    The map need not be square: `fit` knows its rows and columns.
    """

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 2:
            raise ValueError(f"a table of shape {value.shape} must have two axes, positions and heads")
        return value.T

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(value.shape[0], -1).T


class Flipped(Layout):
    """Reverses both position axes of a table [heads, y, x].

    It serves where one side counts key - query and the other query - key.
    """

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 3:
            raise ValueError(f"a table of shape {value.shape} must have three axes, heads and two of positions")
        return np.flip(value, (1, 2))

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return self.forward(value)


class LastFirst(Layout):
    """Moves the last row of a table [1, positions, dim] to the front.

    The row belongs to a class token that follows its patches.
    """

    def forward(self, value: np.ndarray) -> np.ndarray:
        return np.roll(value, 1, axis=1)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return np.roll(value, -1, axis=1)


class MiddleFirst(Layout):
    """The middle row of a table [1, positions, dim] moves to the front.

    It is the row of a class token that stands amid its patches.
    """

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 3 or not value.shape[1]:
            raise ValueError(f"shape {value.shape} must be (1, positions, dim)")
        middle = (value.shape[1] - 1) // 2
        return np.concatenate((value[:, middle : middle + 1], value[:, :middle], value[:, middle + 1 :]), 1)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        middle = (value.shape[1] - 1) // 2
        return np.concatenate((value[:, 1 : middle + 1], value[:, :1], value[:, middle + 1 :]), 1)


class ClassLast(Layout):
    """Moves the class token's three entries of [relative positions + 3, heads] to the front.

    The result is [1, 3 + relative positions, heads].
    """

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
    """The foreign tensor is part `index` of `count` equal parts.

    Joined along their first axis the parts are the tensor here.
    """

    index: int
    count: int

    def forward(self, value: np.ndarray) -> np.ndarray:
        return value

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return np.split(value, self.count)[self.index]


class ReadOnly(Layout):
    """A layout of names that are read but not written."""

    def inverse(self, value: np.ndarray) -> np.ndarray:
        raise ValueError(f"{self} is not undone: these names are read only")


@dataclasses.dataclass(frozen=True)
class Share(ReadOnly):
    """Takes the equal shares `start` to `stop` of `count` along the first axis."""

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
    """Takes some of the tokens of [1, tokens, dim], at least one."""

    start: int
    stop: int | None

    def forward(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 3 or value.shape[1] <= self.start:
            raise ValueError(f"shape {value.shape} must be (1, tokens, dim) with more than {self.start} tokens")
        return value[:, self.start : self.stop]


class Summand(Tokens):
    """Takes tokens that are added to another tensor's values for the same parameter."""


class Projected(ReadOnly):
    """Converts a kernel or bias of Flax's attention to the layout of torch's linear layer.

    The heads have an axis of their own: the kernel is [in, heads, head_dim], with `out` [heads,
    head_dim, out], and the bias [heads, head_dim].
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
    """Renames a part of a name: foreign template, template here, and change of layout.

    A template is text with fields: `{i}` is a number and `{2i+1}` a number computed from it;
    `{x:conv|norm}` is one of the words, `{x}` the same word in the other template. "^" at the start
    and "$" at the end stand for the ends of the name; without them every occurrence is replaced.
    Both templates have the same fields, so that a rule can be read backwards.
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
    """Rules for linear layers here that are 1 x 1 convolutions in the checkpoint.

    The templates are the layers' names, without "weight" or "bias".
    """
    return tuple(Rule(f"{t}.weight$", f"{t}.weight$", Axes("oi11", "oi")) for t in templates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameMap:
    """The names in one source's checkpoints of a family.

    Rules are applied in order, each to the result of the one before.
    """

    source: str  # origin of the names, "timm" or a repository
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()  # regular expressions of foreign names without a parameter here
    suits: str = ""  # regular expression searched in a network's names here; a match selects this map for saving
    copies: tuple[Rule, ...] = ()  # each rule gives a matching tensor a second name, to which `rules` apply too
    deployed: str = ""  # regular expression of foreign names that only files with fused branches have
    zeros: str = ""  # regular expression of parameters here that are zero if a checkpoint has none of them

    def apply(self, name: str) -> tuple[str, tuple[Layout, ...]]:
        """Converts a foreign name to the name here, with the layouts to apply, in order."""
        name, applied = self._apply(name)
        return name, tuple(rule.layout for rule in applied if rule.layout is not None)

    def apply_all(self, name: str) -> list[tuple[str, tuple[Layout, ...]]]:
        """`apply` for every name that a foreign tensor gets here; most get one."""
        out = [self.apply(name)]
        for rule in self.copies:
            second = rule.apply(name)
            if second is not None:
                here, layouts = self.apply(second)
                out.append((here, layouts if rule.layout is None else (rule.layout, *layouts)))
        return out

    def undo(self, name: str) -> tuple[str, tuple[Layout, ...]] | None:
        """Converts a name here to the foreign name, with the layouts to invert, in order; or None.

        The rules are read backwards, the last one first. A rule is skipped if `apply` would not
        restore the name.
        """
        return next(iter(self.undo_all(name)), None)

    def undo_all(self, name: str) -> list[tuple[str, tuple[Layout, ...]]]:
        """`undo` for every foreign tensor that makes up the one here: its parts, one, or none."""
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
    """The `Part` among the layouts; None if they yield a whole tensor."""
    return next((layout for layout in layouts if isinstance(layout, Part)), None)


def _undone(name: str, rules: tuple[Rule, ...]) -> Iterator[tuple[str, tuple[Rule, ...]]]:
    """All names from which some of the rules make this one, with these rules in undo order."""
    for i in range(len(rules) - 1, -1, -1):
        before = rules[i].undo(name)
        if before is not None:
            for foreign, undone in _undone(before, rules[:i]):
                yield foreign, (rules[i], *undone)
    yield name, ()


@functools.cache
def _substitution(old: str, new: str) -> Callable[[str], str | None]:
    """Makes a function that replaces the parts of a name that fit a template.

    It returns None if no part does.
    """
    fields = [m for m in _FIELD.finditer(old)]
    words = {m["word"]: m["words"] for t in (old, new) for m in _FIELD.finditer(t) if m["word"]}
    pattern = re.compile(_pattern(old, words))
    fixed = max(_FIELD.sub("\0", old.removeprefix("^").removesuffix("$")).split("\0"), key=len)  # occurs in every name that fits

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
        if fixed not in name:  # most names fit no rule, and this test is faster than the pattern
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
    """Fills in a template's fields; None if a number would be negative."""
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

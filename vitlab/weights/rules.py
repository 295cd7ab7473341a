"""What a name map is made of: rules that rename a tensor of a foreign checkpoint and may change its layout."""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """A regular expression on the foreign name, its replacement, and the layout change that the rename implies.

    All rules that match are applied in order, each to the result of the one before.
    """

    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    transform: Callable[[np.ndarray], np.ndarray] | None = None


def table_2d(table: np.ndarray) -> np.ndarray:
    """A relative position bias table [(2w-1)**2, heads] as [heads, 2w-1, 2w-1]."""
    side = math.isqrt(table.shape[0])
    return np.moveaxis(table.reshape(side, side, -1), -1, 0)


def square_map(tokens: np.ndarray) -> np.ndarray:
    """The position embedding of a square map, [1, side**2, dim], as [1, side, side, dim]."""
    side = math.isqrt(tokens.shape[1])
    return tokens.reshape(1, side, side, -1)


def rename(name: str, value: np.ndarray, rules: tuple[Rule, ...]) -> tuple[str, np.ndarray]:
    """Applies the rules in order."""
    for rule in rules:
        new = re.sub(rule.pattern, rule.replacement, name)
        if rule.transform is not None and re.search(rule.pattern, name):
            value = rule.transform(value)
        name = new
    return name, value

"""Split names with an optional slice: "train", "train[:90%]", "test[100:200]", as TFDS writes them."""

import re

from vitlab.config import ConfigError

_SPLIT = re.compile(r"(?P<name>[^\[\]+]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def split_name(text: str) -> str:
    """The name without its slice.

    Raises:
      ConfigError: The text is not a name with at most one slice.
    """
    return _match(text)["name"]


def is_sliced(text: str) -> bool:
    """Whether the split asks for a part only."""
    return _match(text)["name"] != text


def split_range(text: str, num_examples: int) -> slice:
    """The part of `num_examples` that the split asks for; a percentage is rounded to the nearest example.

    Raises:
      ConfigError: The text is malformed or the part is empty.
    """
    match = _match(text)

    def bound(value: str | None, default: int) -> int:
        if value is None:
            return default
        number = round(int(value[:-1]) * num_examples / 100) if value.endswith("%") else int(value)
        return min(max(number + num_examples if number < 0 else number, 0), num_examples)

    part = slice(bound(match["start"], 0), bound(match["stop"], num_examples))
    if part.start >= part.stop:
        raise ConfigError(f'split "{text}" is empty: "{match["name"]}" has {num_examples} images')
    return part


def _match(text: str) -> re.Match[str]:
    match = _SPLIT.fullmatch(text)
    if not match:
        raise ConfigError(f'split "{text}" must be a name with an optional slice: "train", "train[:90%]", "test[100:200]"')
    return match

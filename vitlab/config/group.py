"""Groups of config keys: frozen dataclasses whose field types carry bounds and meaning.

A field is written `batch_size: Annotated[Count, "Images per step."]`. The text in the type is the
reference: `python -m vitlab.config` prints it, and errors name the bounds.
"""

import dataclasses
import functools
import typing
from typing import Annotated, Any, ClassVar

from pallas_kernels.command_line import near_misses
from vitlab.bounds import Bounds, check_bounds
from vitlab.config.durations import parse_duration, plain_duration
from vitlab.config.errors import ConfigError
from vitlab.config.references import absolute, is_reference
from vitlab.config.values import shown, type_name, typed


@dataclasses.dataclass(frozen=True)
class Duration:
    """Marks a string as a duration, which the group stores in its canonical text."""

    may_be_zero: bool = False

    def checked(self, value: str, name: str) -> str:
        """The canonical text of a duration; refuses malformed text and a forbidden zero."""
        try:
            number, _ = parse_duration(value)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        if not number and not self.may_be_zero:
            raise ConfigError(f'{name}="{value}" must be longer than 0')
        return plain_duration(value)

    def __str__(self) -> str:
        return "a duration" if self.may_be_zero else "a duration above 0"


@dataclasses.dataclass(frozen=True)
class Part:
    """Marks the name of a table's entry, or a reference to a part of the user's own.

    A reference (see `vitlab.config.references`) is stored with an absolute path.
    """

    choices: tuple[str, ...] | None = ()  # names of the table; (): references only; None: any name, looked up later

    def checked(self, value: str, name: str) -> str:
        """The name or absolute reference; refuses a name that is not in the table."""
        if is_reference(value):
            return absolute(value)
        if self.choices is not None and value not in self.choices:
            near = f": {near_misses(value, self.choices)}" if self.choices else ""
            raise ConfigError(f"{name}={shown(value)} must be {self}{near}")
        return value

    def __str__(self) -> str:
        own = "a part of your own, package.module:name or file.py:name"
        if self.choices is None:
            return f"a name, or {own}"
        return f"one of {', '.join(map(repr, self.choices))}, or {own}" if self.choices else own


Length = Annotated[str, Duration()]
LengthOrZero = Annotated[str, Duration(may_be_zero=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """Type, bounds, meaning and default of one key."""

    plain: Any  # type without annotations, as `typed` takes it
    hint: Any  # type with its bounds, without the text of its meaning
    meaning: str
    default: Any

    @functools.cached_property
    def rule(self) -> str:
        """The allowed values as text: "int in [1, 1024] or None"."""
        return _rule(self.hint)


@functools.cache
def keys_of(cls: type) -> dict[str, Key]:
    """The keys of a group by name, in the order of definition."""
    plain, hints = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
    out = {}
    for field in dataclasses.fields(cls):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        hint, meaning = _without_text(hints[field.name])
        out[field.name] = Key(plain=plain[field.name], hint=hint, meaning=meaning, default=default)
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A group of keys; every value is checked for type and bounds when the group is made."""

    path: ClassVar[tuple[str, ...]] = ()  # names of the keys that lead to this group in the experiment

    def __post_init__(self) -> None:
        for name in keys_of(type(self)):
            object.__setattr__(self, name, self.checked(name, getattr(self, name)))

    @classmethod
    def checked(cls, name: str, value: Any) -> Any:
        """The value of a key, checked and in canonical form.

        Raises:
          ConfigError: The value has another type, or is out of bounds.
        """
        key, dotted = keys_of(cls)[name], ".".join((*cls.path, name))
        value = _marked(typed(value, key.plain, (*cls.path, name), key.rule), key.hint, dotted)
        try:
            check_bounds(dotted, value, key.hint)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return value


def _marked(value: Any, hint: Any, name: str) -> Any:
    """The value with its durations and references in canonical form."""
    if isinstance(value, tuple) and typing.get_args(hint)[1:] == (...,):
        return tuple(_marked(entry, typing.get_args(hint)[0], name) for entry in value)
    if isinstance(value, str):
        for mark in _marks(hint):
            value = mark.checked(value, name)
    return value


def _marks(hint: Any) -> list[Any]:
    """The marks (`Duration`, `Part`) of a type, or of the members of a union."""
    if typing.get_origin(hint) is Annotated:
        return [mark for mark in hint.__metadata__ if isinstance(mark, (Duration, Part))]
    return [] if typing.get_origin(hint) is tuple else [mark for choice in typing.get_args(hint) for mark in _marks(choice)]


def _without_text(hint: Any) -> tuple[Any, str]:
    """The type without the texts that annotate it, and these texts joined."""
    if typing.get_origin(hint) is not Annotated:
        return hint, ""
    marks = tuple(mark for mark in hint.__metadata__ if not isinstance(mark, str))
    text = " ".join(mark for mark in hint.__metadata__ if isinstance(mark, str))
    return (Annotated[(hint.__origin__, *marks)] if marks else hint.__origin__), text


def _rule(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        marks = [mark for mark in hint.__metadata__ if isinstance(mark, (Bounds, Duration, Part))]
        texts = [str(mark) if isinstance(mark, (Duration, Part)) else f"{_rule(hint.__origin__)} {mark}" for mark in marks]
        return " ".join(texts) or _rule(hint.__origin__)
    if typing.get_origin(hint) is tuple:
        if arguments[1:] == (...,):
            return f"a tuple, each entry {_rule(arguments[0])}"
        return f"({', '.join(map(_rule, arguments))})"
    if type(None) in arguments:
        return " or ".join([_rule(choice) for choice in arguments if choice is not type(None)] + ["None"])
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(field.name for field in dataclasses.fields(hint))}}}"
    return {"str": "text", "bool": "true or false"}.get(type_name(hint), type_name(hint))

"""Reduces a source to some of its fields."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.data.fields import Kind, fields_of, paired


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SelectedSource:
    """A source that decodes only some of another source's fields."""

    source: Any
    names: tuple[str, ...]

    @property
    def fields(self) -> dict[str, Kind]:
        """Kinds of the fields `names`, in their order."""
        return paired({name: fields_of(self.source)[name] for name in self.names})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the wrapped source."""
        return self.source.class_names

    @property
    def channels(self) -> int:
        """Channels of the wrapped source."""
        return self.source.channels

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the wrapped source."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[index]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`, read at once if the wrapped source can."""
        read = getattr(self.source, "__getitems__", None) or (lambda indices: [self.source[index] for index in indices])
        return read(indices)

    def name_of(self, index: int) -> str:
        """Name of the image in the wrapped source."""
        return self.source.name_of(index)


def selected(source: Any, names: Sequence[str]) -> Any:
    """The source reduced to the fields `names`, all of which it has.

    A source without other fields is returned itself.
    """
    there: Mapping[str, Kind] = fields_of(source)
    return source if there.keys() == set(names) else SelectedSource(source=source, names=tuple(names))

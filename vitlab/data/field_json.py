"""Fields of shards: their kinds as JSON in the index, and their values as bytes in the records."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image as Picture

from vitlab.config import ConfigError
from vitlab.data.fields import Boxes, Image, IndexMap, Kind, Label, Labels, Value, ValueMap
from vitlab.data.map_files import read_npy

_KINDS = {kind.__name__: kind for kind in (Boxes, Image, IndexMap, Label, Labels, Value, ValueMap)}
_MAPS = (Image, IndexMap, ValueMap)  # kinds that decode bytes themselves
_RUNTIME = ("decoder", "suffix")  # what a loader sets, and what follows from the kind


def fields_to_json(fields: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """Name of the kind, and its options, for each field.

    Raises:
      ConfigError: A kind is the user's own.
    """
    out = {}
    for name, kind in fields.items():
        if type(kind) not in _KINDS.values():
            raise ConfigError(f"{name} is a {type(kind).__name__}: shards hold {', '.join(_KINDS)}")
        values = {key: value for key, value in vars(kind).items() if key not in _RUNTIME}
        out[name] = {"kind": type(kind).__name__, **values}
    return out


def fields_from_json(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Kind]:
    """The kinds; raises ValueError, TypeError or KeyError if there are no such."""
    out = {}
    for name, values in content.items():
        cls = _KINDS[values["kind"]]
        known = {field.name for field in dataclasses.fields(cls)}
        options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known}
        out[name] = cls(**options)
    if "image" not in out:
        raise ValueError("there is no image")
    return out


def to_bytes(kind: Kind, value: Any) -> bytes:
    """A value as its source gives it: encoded as it is, pixels and indices as PNG, everything else as .npy."""
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    if isinstance(kind, (Image, IndexMap)) and np.asarray(value).dtype == np.uint8:
        pixels = np.asarray(value)
        Picture.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(buffer, "PNG")
    else:
        np.save(buffer, np.asarray(value), allow_pickle=False)
    return buffer.getvalue()


def from_bytes(kind: Kind, data: bytes) -> Any:
    """The value that `kind.decode` takes; raises DecodeError if there is none."""
    return data if isinstance(kind, _MAPS) else read_npy(data)

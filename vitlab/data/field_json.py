"""Fields in shards: kinds as JSON in the index, values as bytes in the records."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image as Picture

from vitlab.config import ConfigError
from vitlab.data.fields import Boxes, Image, IndexMap, Kind, Label, Labels, Value, ValueMap
from vitlab.data.flow import Flow
from vitlab.data.map_files import read_npy

_KINDS = {kind.__name__: kind for kind in (Boxes, Flow, Image, IndexMap, Label, Labels, Value, ValueMap)}
_MAPS = (Flow, Image, IndexMap, ValueMap)  # kinds that decode bytes themselves
_RUNTIME = ("decoder", "suffix")  # attributes set by the loader, or derived from the kind


def fields_to_json(fields: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """Class name and options of the kind of each field.

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
    """The kinds in the JSON; raises ValueError, TypeError or KeyError if it is invalid."""
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
    """Bytes of a value: encoded images unchanged, pixels and indices as PNG, the rest as .npy."""
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    pixels = np.asarray(value)
    if isinstance(kind, (Image, IndexMap)) and pixels.dtype == np.uint8 and pixels.shape[2:] in ((), (1,), (3,)):
        Picture.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(buffer, "PNG")
    else:
        np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def from_bytes(kind: Kind, data: bytes) -> Any:
    """The value that `kind.decode` takes; raises DecodeError if the bytes are damaged."""
    return data if isinstance(kind, _MAPS) else read_npy(data)

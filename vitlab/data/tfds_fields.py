"""Features of a TFDS data set as fields, by `data.files`: "segmentation=segmentation_mask".

A feature within a sequence or a dict is named by its path. "boxes=objects/bbox" also reads the
features "label" and "is_crowd" beside it, "labels=objects/label" says which classes are there, and
"label" is a ClassLabel. Any other name is a number. Images and maps have the options of
`vitlab.data.field_files`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitlab.config import ConfigError, near_misses
from vitlab.data.decode import header_of
from vitlab.data.field_files import FIELD_KINDS, Entry, boxes_of, kind_of, parse_files
from vitlab.data.fields import Boxes, Kind, Label, Labels, Value
from vitlab.data.headers import DecodeError

Values = Mapping[str, Any]  # bytes, integers or floats of each feature, see `vitlab.data.example.named_values`


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsFields:
    """How the values of a record become an example."""

    kinds: dict[str, Kind]
    features: dict[str, str]  # field -> path of its feature
    shapes: dict[str, tuple[int, ...]]  # field -> shape of its numbers, of features that are no encoded image
    channels: int

    def example(self, values: Values) -> dict[str, Any]:
        """One value for each field; raises KeyError or ValueError if the record lacks one."""
        return {name: self._value(name, kind, values) for name, kind in self.kinds.items()}

    def _value(self, name: str, kind: Kind, values: Values) -> Any:
        found = values[self.features[name]]
        if isinstance(kind, Boxes):
            return _boxes(np.asarray(found), self.features[name], values, values[self.features["image"]])
        if isinstance(kind, Labels):
            return np.isin(np.arange(len(kind.class_names)), found).astype(np.int8)
        if name not in self.shapes:
            (data,) = found
            return data
        return np.asarray(found).reshape(self.shapes[name])


def _boxes(corners: np.ndarray, path: str, values: Values, image: Sequence[bytes]) -> np.ndarray:
    """Rows (left, top, right, bottom, label, crowd) in pixels, of TFDS's (top, left, bottom, right)
    in [0, 1].
    """
    try:
        header = header_of(image[0])
    except DecodeError as error:
        raise ValueError(f"the image has no header: {error}") from error
    corners = corners.reshape(-1, 4)[:, [1, 0, 3, 2]] * [header.width, header.height, header.width, header.height]
    parent = path.rpartition("/")[0]
    others = [np.asarray(values.get(f"{parent}/{name}", np.zeros(len(corners)))) for name in ("label", "is_crowd")]
    return np.column_stack((corners, *others)).astype(np.float32)


def fields_of_features(files: Sequence[str], features: Any, tfds: Any, names: Sequence[str] | None) -> TfdsFields:
    """The fields that `data.files` names; with `names` only these.

    Raises:
      ConfigError: There is no such feature, or it is not of the kind that the field needs.
    """
    entries = {name: entry for name, entry in parse_files(files).items() if names is None or name in names or name == "image"}
    if "image" not in entries:
        raise ConfigError('data.source="tfds" with data.files needs a feature for the images: "image=image"')
    found = {name: _feature(features, entry) for name, entry in entries.items()}
    image = found["image"]
    if not isinstance(image, tfds.features.Image):
        raise ConfigError(f"{entries['image'].text} is a {type(image).__name__}; the image must be an Image")
    kinds = {name: _kind(entry, found[name], features) for name, entry in entries.items()}
    numbers = {name: feature for name, feature in found.items() if not isinstance(feature, tfds.features.Image)}
    shapes = {name: tuple(feature.shape) for name, feature in numbers.items() if not isinstance(kinds[name], (Boxes, Labels))}
    for name, shape in shapes.items():
        if None in shape:
            raise ConfigError(f"{entries[name].text} has the shape {shape}; it must be an Image, or of a known shape")
    channels = kinds["image"].channels or (1 if image.shape[-1] == 1 else 3)  # type: ignore[attr-defined]
    return TfdsFields(kinds=kinds, features={name: entry.place for name, entry in entries.items()}, shapes=shapes, channels=channels)


def _feature(features: Any, entry: Entry) -> Any:
    for part in entry.place.split("/"):
        inside = getattr(features, "feature", features)  # a sequence has the features of its entries
        known = list(inside) if hasattr(inside, "keys") else []
        if part not in known:
            raise ConfigError(f"{entry.text}: no such feature; {near_misses(part, known) if known else 'nothing is inside it'}")
        features = inside[part]
    return features


def _kind(entry: Entry, feature: Any, features: Any) -> Kind:
    if entry.field in FIELD_KINDS:
        return kind_of(entry)
    if entry.field == "boxes":
        parent = entry.place.rpartition("/")[0]
        label = _feature(features, dataclasses.replace(entry, place=f"{parent}/label" if parent else "label"))
        return boxes_of(entry, _names(entry, label))
    if entry.options:
        raise ConfigError(f"{entry.text} has no options")
    if entry.field == "labels":
        return Labels(class_names=_names(entry, feature))
    if entry.field == "label":
        return Label(class_names=_names(entry, feature))
    if tuple(feature.shape) != ():
        raise ConfigError(f"{entry.text} has the shape {feature.shape}; it must be one number")
    return Value()


def _names(entry: Entry, feature: Any) -> tuple[str, ...]:
    feature = getattr(feature, "feature", feature)  # a sequence has the feature of its entries
    if not getattr(feature, "names", None):
        raise ConfigError(f"{entry.text} needs a ClassLabel, which names the classes, not a {type(feature).__name__}")
    return tuple(feature.names)

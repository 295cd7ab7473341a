"""Kinds of the fields of an example: the image, maps of indices or values, boxes, labels, numbers.

An example maps names to values, a batch maps names to arrays. The kind of a field defines how its
values lie in a batch, and how they are decoded, moved with the image, drawn and written. "Void" is
the value for unknown, which losses and metrics leave out and borders and padding are filled with:
255 in index maps, NaN among values, -1 in boxes and labels. A user's own kind implements the
methods of `Kind`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from vitlab.config import AugmentConfig
from vitlab.data.decode import Decoder, decode
from vitlab.data.headers import DecodeError
from vitlab.data.map_files import index_map_of, value_map_of, write_index_map, write_json, write_picture, write_value_map
from vitlab.data.samples import SampleType, as_picture, samples_of
from vitlab.data.warp import Size, Warp, resample, size_of
from vitlab.drawing.overlay import colour_map, draw_boxes, overlay

Row = Any  # one row of a field's array, or a number if the field has one number per image
VOID_INDEX = 255
BOX_COLUMNS = ("left", "top", "right", "bottom", "label", "crowd", "area")  # edges in pixels from the corner; class; 0 or 1; square pixels
VISIBLE = 0.1  # smallest fraction of a box that a crop must leave; other boxes are dropped
LEAST_SIDE = 1.0  # pixels; boxes with a shorter side are dropped


@runtime_checkable
class Kind(Protocol):
    """The kind of a field; frozen and picklable, so that it reaches worker processes."""

    @property
    def suffix(self) -> str:
        """Suffix of the files that `write` makes, such as ".png"."""
        ...

    def empty(self, count: int, size: Size) -> np.ndarray:
        """The field's array for `count` images of (height, width), without contents."""
        ...

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        """Decodes a value of a source (encoded, a list or an array) to one row of the field.

        `size` is the height and width of the image, which the value must fit.

        Raises:
          DecodeError: The value is damaged, out of range, or does not fit `size`.
        """
        ...

    def warp(self, value: Row, warp: Warp) -> Row:
        """The value after the image's geometry was changed by `warp`."""
        ...

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        """The reason why images with this field cannot be augmented so, or None."""
        ...

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        """Draws the value over an image uint8 [h, w, 3]; returns it with a caption or ""."""
        ...

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        """Writes one value to a file that ends in `suffix`, or in another suffix of this kind."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """Images, [b, h, w, c]: the image itself, a second view, a target to be restored."""

    channels: int | None = None  # None: as many as the model's images have, 1 or 3
    dtype: SampleType = "uint8"  # type of the samples; other types than uint8, as other channels than 1 and 3, are taken as they are
    scale: int = 1  # pixels on a side per pixel of the image; 2 to 8 in a target of super-resolution
    mirror: str | None = None  # field of the other eye, exchanged with this one when the example is flipped
    decoder: Decoder = decode
    suffix: str = ".png"

    @property
    def is_picture(self) -> bool:
        """Whether values are grey or RGB of 8 bits, which are converted and may have policies."""
        return self.dtype == "uint8" and self.channels in (None, 1, 3)

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.zeros((count, size[0] * self.scale, size[1] * self.scale, self.channels or 3), self.dtype)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        pixels = self._picture(value) if self.is_picture else samples_of(value, self.channels or 3, self.dtype)
        if size is not None:
            check_size(pixels, (size[0] * self.scale, size[1] * self.scale))
        return pixels

    def _picture(self, value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray) and value.dtype != np.uint8:
            raise DecodeError(f"an image of {value.dtype}; it must be uint8")
        return self.decoder(value, self.channels or 3)

    def warp(self, value: Row, warp: Warp) -> Row:
        if self.scale == 1:
            return warp.apply(value)
        size = (warp.size[0] * self.scale, warp.size[1] * self.scale)
        (a, b, c), (d, e, f) = warp.matrix[:2].tolist()
        matrix = (a, b, c * self.scale, d, e, f * self.scale)
        if (abs(a), b, d, abs(e)) == (1, 0, 0, 1) and c == int(c) and f == int(f):
            return warp.nearest(value, 0)
        return resample(value, matrix=matrix, size=size)

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        if not self.is_picture and (augment.policy or augment.color_jitter):
            return "augment.policy and augment.color_jitter change pictures of 8 bits, grey or RGB; leave them out"
        return None

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        return as_picture(value), ""

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        write_picture(path, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexMap:
    """The class of each pixel, uint8 [b, h, w], 255 where it is void."""

    class_names: tuple[str, ...] = ()  # in the order of the indices; (): the names of the source
    label_map: tuple[int, ...] = ()  # class of each index of the file, from 0 on; (): unchanged
    suffix: str = ".png"
    void = VOID_INDEX

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.full((count, *size), self.void, np.uint8)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        indices = index_map_of(value)
        if self.label_map:
            table = np.concatenate((self.label_map, np.arange(len(self.label_map), 256))).astype(np.uint8)
            indices = table[indices]
        check_size(indices, size)
        if self.class_names:
            outside = (indices >= len(self.class_names)) & (indices != self.void)
            if outside.any():
                raise DecodeError(f"a class outside: {indices[outside][0]} is not in 0..{len(self.class_names) - 1} and not {self.void}")
        return indices

    def warp(self, value: Row, warp: Warp) -> Row:
        return warp.nearest(value, self.void)

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        return dense_reason(augment)

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        return overlay(picture, value, void=self.void), ""

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        write_index_map(path, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueMap:
    """A number at each pixel, float32 [b, h, w], NaN where it is void."""

    scaling: Literal["none", "width", "area"] = "none"  # scale of the values under resizing: width for disparity, area for density
    unit: float = 256.0  # counts of a 16-bit PNG per unit, 0 being void; KITTI: 256, depth in millimetres: 1000
    mirror: str | None = None  # as in `Image`; a disparity without it cannot be flipped
    suffix: str = ".png"
    void = float("nan")

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.full((count, *size), self.void, np.float32)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        values = value_map_of(value, self.unit)
        check_size(values, size)
        return values

    def warp(self, value: Row, warp: Warp) -> Row:
        moved = warp.nearest(value, self.void)
        if self.scaling == "none":
            return moved
        return moved * np.float32(warp.width_scale if self.scaling == "width" else 1 / warp.area_scale)

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        if self.scaling == "width" and augment.flip and self.mirror is None:
            return "augment.flip=true exchanges left and right, and there is no view of the other eye; set augment.flip=false"
        if self.scaling == "width" and augment.policy is not None and augment.policy != "3a":
            return f'augment.policy="{augment.policy}" rotates images, which have their disparity along the rows'
        return dense_reason(augment)

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        known = value[np.isfinite(value)]
        caption = f"{known.min():.3g} to {known.max():.3g}" if known.size else "void"
        return colour_map(value), caption

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        write_value_map(path, value, self.unit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes with classes, float32 [b, count, 7], columns `BOX_COLUMNS`; a row of -1 is no box.

    A crowd is a region of many objects, in which detections count neither as right nor as wrong. A
    source gives a list of rows of four to seven numbers; by default the class is 0, the box is no
    crowd, and the area is its own.
    """

    count: int = 100  # most boxes in an image; an image with more cannot be decoded
    class_names: tuple[str, ...] = ()  # in the order of the labels; (): the names of the source
    suffix: str = ".json"
    void = -1

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.full((count, self.count, len(BOX_COLUMNS)), self.void, np.float32)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        rows = np.asarray(value, np.float32)
        rows = rows.reshape(len(rows), -1) if rows.size else np.zeros((0, len(BOX_COLUMNS)), np.float32)
        if not 4 <= rows.shape[1] <= len(BOX_COLUMNS):
            raise DecodeError(f"boxes of {rows.shape[1]} numbers; each must have 4 to {len(BOX_COLUMNS)}: {', '.join(BOX_COLUMNS)}")
        if len(rows) > self.count:
            raise DecodeError(f"too many boxes: {len(rows)}, more than {self.count}")
        out = self.empty(1, (0, 0))[0]
        out[: len(rows), 4:6] = 0
        out[: len(rows), : rows.shape[1]] = rows
        if rows.shape[1] < 7:
            out[: len(rows), 6] = _areas(rows)
        self._check(out[: len(rows)], size)
        return out

    def _check(self, rows: np.ndarray, size: Size | None) -> None:
        if not np.isfinite(rows).all() or (rows[:, 2:4] <= rows[:, :2]).any():
            raise DecodeError("an empty box: each must have left < right and top < bottom")
        if size is not None and ((rows[:, 2:4] <= 0).any() or (rows[:, 0] >= size[1]).any() or (rows[:, 1] >= size[0]).any()):
            raise DecodeError(f"a box outside of the image of {size[0]} x {size[1]} pixels")
        if self.class_names and ((rows[:, 4] < 0) | (rows[:, 4] >= len(self.class_names))).any():
            raise DecodeError(f"a class outside: boxes have labels in 0..{len(self.class_names) - 1}")

    def warp(self, value: Row, warp: Warp) -> Row:
        """Moves and clips the boxes.

        A box is dropped if less than a tenth of it or less than a pixel of a side is left.
        """
        rows = value[value[:, 4] != self.void]
        corners = warp.points(rows[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2).astype(np.float64))
        least, most = corners.min(1), corners.max(1)
        height, width = warp.size
        inside = np.concatenate((np.clip(least, 0, (width, height)), np.clip(most, 0, (width, height))), 1)
        whole, left = _areas(np.concatenate((least, most), 1)), _areas(inside)
        share = left / np.maximum(whole, 1e-9)
        kept = (share >= VISIBLE) & (inside[:, 2:] - inside[:, :2] >= LEAST_SIDE).all(1)
        out = self.empty(1, warp.size)[0]
        count = int(kept.sum())
        out[:count, :4], out[:count, 4:6] = inside[kept], rows[kept, 4:6]
        out[:count, 6] = (rows[:, 6] * warp.area_scale * share)[kept]
        return out

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        return dense_reason(augment)

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        rows = value[value[:, 4] != self.void]
        labels = rows[:, 4].astype(int).tolist()
        names = [self.class_names[label] if label < len(self.class_names) else str(label) for label in labels]
        return draw_boxes(picture, rows[:, :4], labels), ", ".join(names) or "no object"

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        """Writes JSON: a list of {"left": ..., "label": ...}."""
        rows = value[value[:, 4] != self.void].tolist()
        write_json(path, [dict(zip(BOX_COLUMNS, row, strict=True)) for row in rows])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """One class, int32 [b]."""

    class_names: tuple[str, ...] = ()  # in the order of the labels; (): the names of the source
    suffix: str = ".json"
    void = -1

    def empty(self, count: int, size: Size) -> np.ndarray:
        """Zeros instead of void: rows without an image are marked in evaluation's "mask"."""
        return np.zeros(count, np.int32)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        label = np.asarray(value, np.int32)
        if self.class_names and not self.void <= label < len(self.class_names):
            raise DecodeError(f"a class outside: {label} is not in 0..{len(self.class_names) - 1} and not {self.void}")
        return label

    def warp(self, value: Row, warp: Warp) -> Row:
        return value

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        return None

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        return picture, "void" if value == self.void else _name(self.class_names, int(value))

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        write_json(path, int(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Any number of classes, int8 [b, classes]: 1 present, 0 absent, -1 unknown."""

    class_names: tuple[str, ...]  # in the order of the columns
    suffix: str = ".json"
    void = -1

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.full((count, len(self.class_names)), self.void, np.int8)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        """Takes one number per class."""
        labels = np.asarray(value)
        if labels.shape != (len(self.class_names),) or not np.isin(labels, (-1, 0, 1)).all():
            raise DecodeError(f"labels of shape {labels.shape}; there must be {len(self.class_names)}, each 1, 0 or -1")
        return labels.astype(np.int8)

    def warp(self, value: Row, warp: Warp) -> Row:
        return value

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        return None

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        return picture, ", ".join(self._present(value)) or "none"

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        write_json(path, self._present(value))

    def _present(self, value: np.ndarray) -> list[str]:
        return [name for name, has in zip(self.class_names, value.tolist(), strict=True) if has == 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A number of the whole image, float32 [b], or several, [b, names]; NaN where it is void."""

    names: tuple[str, ...] = ()  # names of several numbers; (): a single number
    counts: bool = False  # whether it counts things in the whole image, which then may not be cropped
    suffix: str = ".json"
    void = float("nan")

    def empty(self, count: int, size: Size) -> np.ndarray:
        return np.full((count, *self._shape), self.void, np.float32)

    def decode(self, value: Any, size: Size | None = None) -> np.ndarray:
        values = np.asarray(value, np.float32)
        if values.shape != self._shape:
            raise DecodeError(f"values of shape {values.shape}; it must be {self._shape}")
        return values

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self.names),) if self.names else ()

    def warp(self, value: Row, warp: Warp) -> Row:
        return value

    def unsupported_reason(self, augment: AugmentConfig) -> str | None:
        if self.counts and augment.crop not in ("center", "stretch", "letterbox"):
            return f'augment.crop="{augment.crop}" leaves parts of the image out, and with them what is counted; set augment.crop=stretch'
        return None

    def draw(self, picture: np.ndarray, value: Row) -> tuple[np.ndarray, str]:
        if not self.names:
            return picture, f"{value:.4g}"
        return picture, ", ".join(f"{name} {number:.4g}" for name, number in zip(self.names, value.tolist(), strict=True))

    def write(self, path: str | os.PathLike[str], value: Row) -> None:
        write_json(path, dict(zip(self.names, value.tolist(), strict=True)) if self.names else float(value))


CLASSIFICATION: Mapping[str, Kind] = {"image": Image(), "label": Label()}  # fields of a source that declares none


def fields_of(source: Any) -> Mapping[str, Kind]:
    """The kinds of a source's fields, by name."""
    return getattr(source, "fields", CLASSIFICATION)


def declared_channels(fields: Mapping[str, Kind]) -> int | None:
    """Channels that the image declares; None if its files decide."""
    image = fields["image"]
    return image.channels if isinstance(image, Image) else None


def with_images(fields: Mapping[str, Kind], channels: int, decoder: Decoder) -> dict[str, Kind]:
    """The fields with the model's channels and the loader's decoder filled in.

    Images that declare their own number of channels keep it.
    """
    return {
        name: dataclasses.replace(kind, channels=kind.channels or channels, decoder=decoder) if isinstance(kind, Image) else kind
        for name, kind in fields.items()
    }


def with_names(fields: Mapping[str, Kind], class_names: tuple[str, ...]) -> dict[str, Kind]:
    """The fields with the names of the source where they have none, so that a class outside of them
    is refused.
    """

    def named(kind: Kind) -> Kind:
        if isinstance(kind, (IndexMap, Boxes, Label)) and not kind.class_names:
            return dataclasses.replace(kind, class_names=class_names)
        return kind

    return {name: named(kind) for name, kind in fields.items()}


def decode_example(example: Mapping[str, Any], fields: Mapping[str, Kind]) -> dict[str, np.ndarray]:
    """Decodes all fields of an example, the image first.

    Raises:
      DecodeError: A field cannot be decoded, or does not fit the image's size; the message names
        the field, unless it is the image.
    """
    out = {"image": fields["image"].decode(example["image"])}
    size = size_of(out["image"])
    for name, kind in fields.items():
        if name != "image":
            try:
                out[name] = kind.decode(example[name], size)
            except DecodeError as error:
                raise DecodeError(f"{name}: {error}") from error
    return out


def paired(fields: Mapping[str, Kind]) -> dict[str, Kind]:
    """The fields, with `mirror` removed where the field of the other eye is missing."""

    def alone(kind: Kind) -> Kind:
        if isinstance(kind, (Image, ValueMap)) and kind.mirror is not None and kind.mirror not in fields:
            return dataclasses.replace(kind, mirror=None)
        return kind

    return {name: alone(kind) for name, kind in fields.items()}


def mirrored(example: Mapping[str, Any], fields: Mapping[str, Kind]) -> dict[str, Any]:
    """Exchanges the fields of the two eyes of an example, which then can be flipped."""
    return {name: example[getattr(kind, "mirror", None) or name] for name, kind in fields.items()}


def dense_reason(augment: AugmentConfig) -> str | None:
    """The reason why maps and boxes cannot follow an image that is augmented so, or None."""
    if augment.policy is not None and augment.policy.startswith("augmix"):
        return f'augment.policy="{augment.policy}" mixes copies of an image that have moved differently'
    return None


def check_size(array: np.ndarray, size: Size | None) -> None:
    """Raises DecodeError if an array [h, w, ...] is not as large as its image."""
    if size is not None and size_of(array) != size:
        raise DecodeError(f"another size: {array.shape[0]} x {array.shape[1]} pixels beside an image of {size[0]} x {size[1]}")


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if 0 <= label < len(class_names) else str(label)

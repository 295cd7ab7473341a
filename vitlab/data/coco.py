"""Images with objects in a JSON file of COCO's format: boxes, classes, counts and masks.

`data.files` has "image=FOLDER" and "annotations=FILE.json", below `data.data_dir`; {split} in them
stands for the split. An entry "boxes=all most=N" sets the largest number of boxes of an image.
Classes are the categories in the order of their ids. Images without objects are kept.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vitlab.config import ConfigError
from vitlab.data.channels import channels_of
from vitlab.data.field_files import Entry, boxes_of, parse_files
from vitlab.data.fields import BOX_COLUMNS, VOID_INDEX, Boxes, Image, IndexMap, Kind, Labels, Value
from vitlab.data.headers import DecodeError
from vitlab.data.paths import Fence, data_path, join, read_bytes
from vitlab.data.rle import decode_rle
from vitlab.data.splits import split_name, stratified
from vitlab.data.warp import Size

_EXAMPLE = 'data.files=("image={split}2017","annotations=annotations/instances_{split}2017.json")'
FIELDS = ("image", "boxes", "labels", "count", "segmentation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    """One annotation of an image."""

    row: tuple[float, ...]  # numbers in the order of `BOX_COLUMNS`
    mask: Any  # polygons (x, y, x, y, ...) or run lengths {"size", "counts"}; None if masks are not read
    problem: str  # reason why the annotation is invalid; "" if it is valid


class CocoSource:
    """The images of one split; their annotations are held in memory."""

    def __init__(
        self,
        root: epath.Path,
        images: Sequence[Mapping[str, Any]],
        objects: Sequence[Sequence[Object]],
        fields: Mapping[str, Kind],
        classes: tuple[str, ...],
    ):
        """Takes `images` as in the JSON, with "file_name" relative to `root`.

        Args:
          root: Folder of the images.
          images: Entries of the images in the JSON.
          objects: Objects of each image.
          fields: Kinds of the fields of each example.
          classes: Class names of the objects.
        """
        self.root, self.images, self.objects, self.fields, self.class_names = root, tuple(images), tuple(objects), dict(fields), classes
        self._folder = os.fspath(root)
        what = (self.files, fields, classes, [[(one.row, one.problem) for one in own] for own in objects])
        self.fingerprint = hashlib.blake2b(repr(what).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the images, relative to the root."""
        return tuple(image["file_name"] for image in self.images)

    @functools.cached_property
    def channels(self) -> int:
        """Channels by the images' headers: 1 if all are grey, else 3."""
        return channels_of(lambda index, size: read_bytes(self.name_of(index), size), np.zeros(len(self), np.int64))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The requested fields; raises OSError if the image or one of its objects is invalid."""
        objects = self.objects[index]
        if problem := next((one.problem for one in objects if one.problem), None):
            raise OSError(problem)
        rows = np.array([one.row for one in objects], np.float32).reshape(-1, len(BOX_COLUMNS))
        make = {
            "image": lambda: read_bytes(self.name_of(index)),
            "boxes": lambda: rows,
            "labels": lambda: _presence(rows, len(self.class_names)),
            "count": lambda: float((rows[:, 5] == 0).sum()),
            "segmentation": lambda: _painted(objects, _size(self.images[index])),
        }
        return {name: make[name]() for name in self.fields}

    def name_of(self, index: int) -> str:
        """Path of the image's file."""
        return join(self._folder, self.images[index]["file_name"])


def open_coco(
    data_dir: str | None, split: str, files: Sequence[str], *, names: Sequence[str] | None = None, follow_outside: bool = False
) -> CocoSource:
    """Opens one split.

    Args:
      data_dir: The root folder.
      split: Name that {split} stands for, with an optional slice, which takes a fixed pseudo-random
        part.
      files: Entries as in `data.files`.
      names: Fields of each example, out of `FIELDS`; None for all but the map of classes.
      follow_outside: Whether images may lie outside the root.

    Raises:
      ConfigError: The root or a file is missing, the JSON is not in COCO's format, or an image lies
        outside the root.
    """
    if data_dir is None:
        raise ConfigError('data.source="coco" needs data.data_dir, the folder below which the names of data.files begin')
    root, entries, name = data_path(data_dir), parse_files(files), split_name(split)
    if not {"image", "annotations"} <= entries.keys() <= {"image", "annotations", "boxes"}:
        raise ConfigError(f'data.source="coco" needs the folder of the images and the file of annotations: {_EXAMPLE}')
    fence = Fence(root, follow_outside=follow_outside)
    folder, path = (fence.path_of(entries[key].place.replace("{split}", name)) for key in ("image", "annotations"))
    content = _read_json(path)
    wanted = tuple(names) if names is not None else tuple(field for field in FIELDS if field != "segmentation")
    with _refusing_malformed(path):
        categories = {category["id"]: category["name"] for category in sorted(content["categories"], key=lambda one: one["id"])}
        classes = tuple(map(str, categories.values()))
        labels_of = {number: label for label, number in enumerate(categories)}
        images = sorted(content["images"], key=lambda image: image["id"])
        own: dict[Any, list[Object]] = {image["id"]: [] for image in images}
        sizes = {image["id"]: _size(image) for image in images}
        for annotation in content.get("annotations", ()):
            if annotation["image_id"] in own:
                one = _object(annotation, labels_of, sizes[annotation["image_id"]], masks="segmentation" in wanted)
                own[annotation["image_id"]].append(one)
        paths = [image["file_name"] for image in images]
    if not images:
        raise ConfigError(f"{path} lists no image")
    fields = {field: kind for field, kind in _kinds(entries, classes).items() if field in wanted}
    if "segmentation" in fields and len(classes) > VOID_INDEX - 1:
        raise ConfigError(f"{path} has {len(classes)} categories; a map of classes has at most {VOID_INDEX - 1} beside the background")
    inside = Fence(folder, follow_outside=follow_outside)
    for file in paths:
        inside.path_of(file)
    order = stratified(split, paths, np.zeros(len(paths), np.int32)).tolist() if split != name else range(len(paths))
    return CocoSource(data_path(folder), [images[i] for i in order], [own[images[i]["id"]] for i in order], fields, classes)


def _kinds(entries: Mapping[str, Entry], classes: tuple[str, ...]) -> dict[str, Kind]:
    return {
        "image": Image(),
        "boxes": boxes_of(entries["boxes"], classes) if "boxes" in entries else Boxes(class_names=classes),
        "labels": Labels(class_names=classes),
        "count": Value(counts=True),
        "segmentation": IndexMap(class_names=("background", *classes)),
    }


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise ConfigError(f'{path} is no file of COCO\'s format, which has "images", "annotations" and "categories"')
    return content


@contextlib.contextmanager
def _refusing_malformed(path: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of COCO's format: {type(error).__name__} {error}") from error


def _size(image: Mapping[str, Any]) -> Size:
    return int(image["height"]), int(image["width"])


def _object(annotation: Mapping[str, Any], labels_of: Mapping[Any, int], size: Size, *, masks: bool) -> Object:
    left, top, width, height = map(float, annotation.get("bbox") or (0, 0, 0, 0))
    label, crowd = labels_of.get(annotation["category_id"]), float(annotation.get("iscrowd", 0))
    area = float(annotation.get("area", width * height))
    problem = ""
    if label is None:
        problem = f"a class outside: category_id={annotation['category_id']} is none of the categories"
    elif not (width > 0 and height > 0):
        problem = f"an empty box: bbox={annotation.get('bbox')}"
    elif left >= size[1] or top >= size[0] or left + width <= 0 or top + height <= 0:
        problem = f"a box outside of the image of {size[0]} x {size[1]} pixels: bbox={annotation['bbox']}"
    mask = annotation.get("segmentation") if masks else None
    return Object(row=(left, top, left + width, top + height, float(label or 0), crowd, area), mask=_compact(mask), problem=problem)


def _compact(mask: Any) -> Any:
    """Converts polygons to arrays, which take a tenth of the memory."""
    return [np.array(polygon, np.float32) for polygon in mask] if isinstance(mask, list) else mask


def _presence(rows: np.ndarray, num_classes: int) -> np.ndarray:
    labels = np.zeros(num_classes, np.int8)
    labels[rows[:, 4].astype(int)] = 1
    return labels


def _painted(objects: Sequence[Object], size: Size) -> np.ndarray:
    """A map of class + 1 at each pixel, 0 without an object, 255 in crowds.

    Small objects are painted over large ones.
    """
    out = np.zeros(size, np.uint8)
    for one in sorted(objects, key=lambda one: -one.row[6]):
        out[_mask(one.mask, size)] = VOID_INDEX if one.row[5] else int(one.row[4]) + 1
    return out


def _mask(mask: Any, size: Size) -> np.ndarray:
    """The pixels of a mask, bool [h, w]; raises OSError if it is empty or damaged."""
    if isinstance(mask, Mapping):
        if list(mask["size"]) != list(size):
            raise OSError(f"a run-length mask of {mask['size']} in an image of {size[0]} x {size[1]} pixels")
        try:
            return decode_rle(mask["counts"], size)
        except DecodeError as error:
            raise OSError(str(error)) from error
    if not mask or any(polygon.size < 6 or polygon.size % 2 for polygon in mask):
        raise OSError("an empty polygon: each must have three points or more")
    return np.logical_or.reduce([_filled(polygon.reshape(-1, 2).astype(np.float64), size) for polygon in mask])


def _filled(points: np.ndarray, size: Size) -> np.ndarray:
    """The pixels whose centres lie in a polygon [n, 2] of (x, y), by the even-odd rule."""
    x, y = points.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    centres = np.arange(size[0])[:, None] + 0.5
    rows, edges = np.nonzero((y <= centres) != (next_y <= centres))  # edges that cross the row of pixel centres
    share = (rows + 0.5 - y[edges]) / (next_y[edges] - y[edges])
    crossings = x[edges] + share * (next_x[edges] - x[edges])
    changes = np.zeros((size[0], size[1] + 1), np.int32)
    np.add.at(changes, (rows, np.clip(np.ceil(crossings - 0.5), 0, size[1]).astype(np.int64)), 1)
    return np.cumsum(changes[:, :-1], axis=1) % 2 == 1

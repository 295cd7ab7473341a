"""Entries of `data.files`: the file, column or folder of each field, and the meaning of values.

An entry is "FIELD=PLACE option=value ...". The name of a field determines its kind, see
`FIELD_KINDS`. "Void" means unknown, see `vitlab.data.fields`. Options of an index map:

- classes=a,b,c: class names in the order of the indices (default: classes.txt beside the data)
- void=N: an index that is void, besides 255
- first=N: the index of the first class; lower ones are void
- map=A,B,C: the class of each index, from 0 on

Options of an image: channels=N, and dtype=uint8, uint16 or float32 (.npy, .npz, PFM, PNG, TIFF),
for samples that are taken as they are. Option of a value map: unit=N, counts of a 16-bit PNG per
unit. Option of boxes: most=N, the largest number of boxes in an image.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import get_args

from vitlab.config import ConfigError, near_misses
from vitlab.data.fields import VOID_INDEX, Boxes, Image, IndexMap, Kind, ValueMap
from vitlab.data.flow import Flow
from vitlab.data.samples import SampleType

FIELD_KINDS: Mapping[str, Kind] = {
    "image": Image(mirror="image2"),
    "image2": Image(mirror="image"),
    "target": Image(),
    "segmentation": IndexMap(),
    "depth": ValueMap(),
    "density": ValueMap(scaling="area"),
    "disparity": ValueMap(scaling="width", mirror="disparity2"),
    "disparity2": ValueMap(scaling="width", mirror="disparity"),
    "flow": Flow(),
}
_ENTRY = re.compile(r"(?P<field>\w+)=(?P<place>.+?)(?P<options>(\s+(classes|void|first|map|unit|most|channels|dtype)=\S+)*)\s*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of `data.files`."""

    field: str
    place: str
    options: Mapping[str, str]

    @property
    def text(self) -> str:
        """The entry as text, for errors."""
        return f'data.files="{self.field}={self.place}"'


def parse_files(files: Sequence[str]) -> dict[str, Entry]:
    """Parses the entries, by field.

    Raises:
      ConfigError: An entry is malformed, or a field occurs twice.
    """
    entries: dict[str, Entry] = {}
    for text in files:
        match = _ENTRY.fullmatch(text)
        if not match:
            raise ConfigError(f'data.files: "{text}" must be FIELD=PLACE, with options such as classes=a,b or void=11 after it')
        if match["field"] in entries:
            raise ConfigError(f'data.files names "{match["field"]}" twice')
        options = dict(option.split("=", 1) for option in match["options"].split())
        entries[match["field"]] = Entry(field=match["field"], place=match["place"], options=options)
    return entries


def kind_of(entry: Entry, class_names: tuple[str, ...] = ()) -> Kind:
    """The kind of a field whose values are stored in files.

    `class_names` are the names in classes.txt.

    Raises:
      ConfigError: No field has this name, or an option is malformed or does not fit the kind.
    """
    if entry.field not in FIELD_KINDS:
        raise ConfigError(f"{entry.text}: no field of files is called so; {near_misses(entry.field, FIELD_KINDS)}")
    kind = FIELD_KINDS[entry.field]
    try:
        return _with_options(kind, entry, class_names)
    except ValueError as error:
        raise ConfigError(f"{entry.text}: {error}") from error


def boxes_of(entry: Entry, class_names: tuple[str, ...]) -> Boxes:
    """The kind of boxes, with the options of an entry."""
    _refuse_others(entry, ("most",))
    try:
        return Boxes(count=_number(entry, "most", 1, 100_000), class_names=class_names) if entry.options else Boxes(class_names=class_names)
    except ValueError as error:
        raise ConfigError(f"{entry.text}: {error}") from error


def _with_options(kind: Kind, entry: Entry, class_names: tuple[str, ...]) -> Kind:
    if isinstance(kind, IndexMap):
        _refuse_others(entry, ("classes", "void", "first", "map"))
        names = tuple(entry.options["classes"].split(",")) if "classes" in entry.options else class_names
        return dataclasses.replace(kind, class_names=names, label_map=_label_map(entry))
    if isinstance(kind, ValueMap):
        _refuse_others(entry, ("unit",))
        if "unit" in entry.options and not 0 < float(entry.options["unit"]) < float("inf"):
            raise ValueError("unit must be above 0")
        return dataclasses.replace(kind, unit=float(entry.options["unit"])) if entry.options else kind
    if isinstance(kind, Image):
        _refuse_others(entry, ("channels", "dtype"))
        if (dtype := entry.options.get("dtype", "uint8")) not in get_args(SampleType):
            raise ValueError(f"dtype must be one of {', '.join(get_args(SampleType))}")
        channels = _number(entry, "channels", 1, 1024) if "channels" in entry.options else None
        return dataclasses.replace(kind, channels=channels, dtype=dtype)
    _refuse_others(entry, ())
    return kind


def _label_map(entry: Entry) -> tuple[int, ...]:
    """Class of each index, from 0 on; () leaves the indices unchanged."""
    if "map" in entry.options:
        _refuse_others(entry, ("classes", "map"))
        numbers = tuple(map(int, entry.options["map"].split(",")))
        if len(numbers) > 256 or not all(0 <= number <= VOID_INDEX for number in numbers):
            raise ValueError("map must be at most 256 numbers in 0..255")
        return numbers
    if not {"void", "first"} & entry.options.keys():
        return ()
    void, first = (_number(entry, name, 0, VOID_INDEX) if name in entry.options else None for name in ("void", "first"))
    return tuple(VOID_INDEX if i < (first or 0) or i in (void, VOID_INDEX) else i - (first or 0) for i in range(256))


def _number(entry: Entry, name: str, least: int, most: int) -> int:
    number = int(entry.options[name])
    if not least <= number <= most:
        raise ValueError(f"{name}={number} must be in {least}..{most}")
    return number


def _refuse_others(entry: Entry, known: Sequence[str]) -> None:
    if unknown := [name for name in entry.options if name not in known]:
        raise ConfigError(f"{entry.text} has no option {unknown[0]}; {'it has ' + ', '.join(known) if known else 'it has none'}")

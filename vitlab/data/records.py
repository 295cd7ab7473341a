"""Labelled images in array_record files of any origin.

Damaged records and labels without a class raise OSError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from vitlab.data.example import image_and_label, named_bytes, named_values
from vitlab.data.field_json import from_bytes
from vitlab.data.fields import Kind

DAMAGE = (RuntimeError, ValueError)  # errors of array_record: wrong checksum, truncated file, other kind of file


def read_example(records: ArrayRecordDataSource, index: int, num_classes: int) -> dict[str, Any]:
    """One example, {"image": encoded bytes, "label": int in [0, num_classes)}.

    Raises:
      OSError: The record is damaged or no example, or its label has no class.
    """
    try:
        return _example(records[index], num_classes)
    except DAMAGE as error:
        raise OSError("damaged record") from error


def read_examples(records: ArrayRecordDataSource, indices: Sequence[int], num_classes: int) -> list[dict[str, Any]]:
    """The examples at `indices`, in a tenth of the time of reading them one by one.

    Raises:
      OSError: As `read_example`, for any of the examples.
    """
    try:
        return [_example(record, num_classes) for record in records.__getitems__(indices)]
    except DAMAGE as error:
        raise OSError("damaged record") from error


def read_fields(records: ArrayRecordDataSource, indices: Sequence[int], fields: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """The examples at `indices`, with a value for each field.

    Raises:
      OSError: A record is damaged, is no example, or lacks a field.
    """
    try:
        examples = [named_bytes(record) for record in records.__getitems__(list(indices))]
        return [{name: from_bytes(kind, example[name]) for name, kind in fields.items()} for example in examples]
    except (*DAMAGE, KeyError) as error:
        raise OSError("damaged record") from error


def read_values(records: ArrayRecordDataSource, indices: Sequence[int]) -> list[dict[str, Any]]:
    """All values of each feature of the examples at `indices`.

    Raises:
      OSError: A record is damaged or no example.
    """
    try:
        return [named_values(record) for record in records.__getitems__(list(indices))]
    except DAMAGE as error:
        raise OSError("damaged record") from error


def _example(record: bytes, num_classes: int) -> dict[str, Any]:
    image, label = image_and_label(record)
    if not 0 <= label < num_classes:
        raise OSError(f"label {label} is not in 0..{num_classes - 1}")
    return {"image": image, "label": label}

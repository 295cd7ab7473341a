"""Data sets prepared by TFDS in the array_record format, read without TensorFlow."""

import dataclasses
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.config import ConfigError, near_misses
from vitlab.data.fields import CLASSIFICATION, Kind
from vitlab.data.paths import data_path, refuse_remote, refuse_undecodable
from vitlab.data.records import read_example, read_examples, read_values
from vitlab.data.splits import split_name
from vitlab.data.tfds_fields import TfdsFields, fields_of_features


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TfdsSource:
    """One split of encoded images.

    Reading many at once takes a tenth of the time of reading them one by one.
    """

    records: Any  # ArrayRecordDataSource of serialised examples
    class_names: tuple[str, ...]
    channels: int
    fingerprint: str
    split: str
    own: TfdsFields | None = None  # what `data.files` names; None: an image and its label

    @property
    def fields(self) -> Mapping[str, Kind]:
        """Kinds of the fields, by name."""
        return CLASSIFICATION if self.own is None else self.own.kinds

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example; raises OSError if its record is damaged or its label has no class."""
        if self.own is not None:
            return self.__getitems__([index])[0]
        return read_example(self.records, index, len(self.class_names))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`; raises OSError as `__getitem__` does."""
        if self.own is not None:
            try:
                return [self.own.example(values) for values in read_values(self.records, indices)]
            except (KeyError, ValueError) as error:
                raise OSError(f"a record without what data.files names: {error}") from error
        return read_examples(self.records, indices, len(self.class_names))

    def name_of(self, index: int) -> str:
        """Split and index in the split, slice included: "train[:99%]/17"."""
        return f"{self.split}/{index}"


def open_tfds(
    name: str | None, data_dir: str | None, split: str, files: Sequence[str] = (), *, names: Sequence[str] | None = None
) -> TfdsSource:
    """Opens a prepared data set with features "image" (an Image) and "label" (a ClassLabel), or
    with those that `files` names.

    Args:
      name: "cifar10" or, with a version, "imagenet2012:5.1.0".
      data_dir: Folder of the prepared data sets; None takes TFDS's default, ~/tensorflow_datasets.
      split: Any split of TFDS, slices included.
      files: The feature of each field, see `vitlab.data.tfds_fields`; () takes image and label.
      names: Fields to read; None for all in `files`.

    Raises:
      ConfigError: The data set, the split or its files are missing, the files are TFRecord, or the
        features differ.
    """
    tfds: Any = importlib.import_module("tensorflow_datasets")  # imported here because it takes 0.3 s

    if name is None:
        raise ConfigError('data.source="tfds" needs data.name, the data set: "cifar10"')
    where = data_path(data_dir or tfds.core.constants.DATA_DIR)
    refuse_remote(where, "array_record files")
    refuse_undecodable(where, "array_record files")
    try:
        builder = tfds.builder(name, data_dir=where)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ConfigError(f'TFDS knows no data set "{name}", and {where} holds none of that name') from error
    except Exception as error:  # TFDS raises any type of error on damaged descriptions
        raise ConfigError(f'"{name}" in {where} cannot be opened: {type(error).__name__}: {_first_line(error)}') from error
    if not builder.info.splits:
        raise ConfigError(f'"{name}" is not prepared in {where}; prepare it there with file_format="array_record", or set data.data_dir')
    own = fields_of_features(files, builder.info.features, tfds, names) if files else None
    class_names, channels = _features(name, builder.info.features, tfds) if own is None else (_class_names(own.kinds), own.channels)
    for part in map(split_name, split.split("+")):
        if part not in builder.info.splits and part != "all":
            raise ConfigError(f'"{name}" has no split "{part}"; {near_misses(part, builder.info.splits)}')
    try:
        records = builder.as_data_source(split=split).data_source  # the level below TFDS's decoding, which is slower than `decode`
    except NotImplementedError as error:
        raise ConfigError(f'"{name}" in {where} is not in the array_record format, the only one read without TensorFlow') from error
    except (ValueError, OSError) as error:
        raise ConfigError(f'split "{split}" of "{name}" in {where} cannot be opened: {_first_line(error)}') from error
    what = split if own is None else f"{split} {own}"
    fingerprint = _fingerprint(builder.info, what, class_names)
    return TfdsSource(records=records, class_names=class_names, channels=channels, split=split, fingerprint=fingerprint, own=own)


def _class_names(kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    return next((names for kind in kinds.values() if (names := getattr(kind, "class_names", ()))), ())


def _features(name: str, features: Any, tfds: Any) -> tuple[tuple[str, ...], int]:
    image, label = (dict(features.items()).get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise ConfigError(f'"{name}" has the features {", ".join(features)}; an Image "image" and a ClassLabel "label" are needed')
    if label.num_classes < 2:
        raise ConfigError(f'"{name}" has {label.num_classes} class; at least 2 are needed')
    return tuple(label.names), 1 if image.shape[-1] == 1 else 3


def _fingerprint(info: Any, split: str, class_names: tuple[str, ...]) -> str:
    shards = {key: (tuple(value.shard_lengths), value.num_bytes) for key, value in sorted(info.splits.items())}
    return hashlib.blake2b(repr((info.full_name, shards, split, class_names)).encode(), digest_size=8).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

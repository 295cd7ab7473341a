"""Data sets prepared by TFDS in the array_record format, read without TensorFlow."""

import dataclasses
import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

from vitlab.config import ConfigError, near_misses
from vitlab.data.paths import data_path, refuse_remote, refuse_undecodable
from vitlab.data.records import read_example, read_examples
from vitlab.data.splits import split_name


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

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example; raises OSError if its record is damaged or its label has no class."""
        return read_example(self.records, index, len(self.class_names))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`; raises OSError as `__getitem__` does."""
        return read_examples(self.records, indices, len(self.class_names))

    def name_of(self, index: int) -> str:
        """Split and index in the split, slice included: "train[:99%]/17"."""
        return f"{self.split}/{index}"


def open_tfds(name: str | None, data_dir: str | None, split: str) -> TfdsSource:
    """Opens a prepared data set with features "image" (an Image) and "label" (a ClassLabel).

    Args:
      name: "cifar10" or, with a version, "imagenet2012:5.1.0".
      data_dir: Folder of the prepared data sets; None takes TFDS's default, ~/tensorflow_datasets.
      split: Any split of TFDS, slices included.

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
    class_names, channels = _features(name, builder.info.features, tfds)
    for part in map(split_name, split.split("+")):
        if part not in builder.info.splits and part != "all":
            raise ConfigError(f'"{name}" has no split "{part}"; {near_misses(part, builder.info.splits)}')
    try:
        records = builder.as_data_source(split=split).data_source  # the level below TFDS's decoding, which is slower than `decode`
    except NotImplementedError as error:
        raise ConfigError(f'"{name}" in {where} is not in the array_record format, the only one read without TensorFlow') from error
    except (ValueError, OSError) as error:
        raise ConfigError(f'split "{split}" of "{name}" in {where} cannot be opened: {_first_line(error)}') from error
    return TfdsSource(
        records=records, class_names=class_names, channels=channels, split=split, fingerprint=_fingerprint(builder.info, split, class_names)
    )


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

"""Sources of images: random access by index, one interface for all kinds."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from vitlab.config import ConfigError, DataConfig, SourceConfig
from vitlab.config.references import is_reference, load_reference
from vitlab.data.bundled import open_bundled
from vitlab.data.coco import open_coco
from vitlab.data.fields import CLASSIFICATION, Kind, declared_channels, fields_of
from vitlab.data.image_csv import open_images
from vitlab.data.labels import labels_of
from vitlab.data.mixture import mixture
from vitlab.data.pairs import open_pairs
from vitlab.data.paths import refuse_unreadable
from vitlab.data.photographs import open_photographs
from vitlab.data.scenes import FIELDS, open_scenes
from vitlab.data.selection import selected
from vitlab.data.shards import open_shards
from vitlab.data.table import open_table
from vitlab.data.tars import open_tars
from vitlab.data.tfds import open_tfds


@runtime_checkable
class Source(Protocol):
    """Labelled images by index; reading is thread-safe, and a source is picklable for workers.

    A source may also have `__getitems__(indices) -> list of examples`, if reading many images at
    once is faster. A source whose examples have other fields than an image and its label has
    `fields`, a mapping from names to kinds (see `vitlab.data.fields`).
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images: 1 (grey), 3 (RGB), or as many as `fields["image"]` declares."""
        ...

    @property
    def fingerprint(self) -> str:
        """Short hash of the contents (files, sizes, labels), compared when a run is resumed."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": encoded bytes or uint8 [h, w, c], "label": int}, or a value for each field."""
        ...

    def name_of(self, index: int) -> str:
        """Name of the image in the log: its path, or "train/123"."""
        ...


_INTERFACE = ("class_names", "channels", "fingerprint", "__len__", "__getitem__", "name_of")


def open_source(config: DataConfig, *, train: bool, fields: Sequence[str] = tuple(CLASSIFICATION)) -> Source:
    """Opens the training or the evaluation split; a mixture for training with `more_sources`.

    Args:
      config: The data.
      train: Whether the training split is opened, rather than the evaluation split.
      fields: Names of the fields that each example must have; others are not read.

    Raises:
      ConfigError: The data is missing, cannot be sampled as requested or lacks a field, or the
        mixed sources have different classes or channels; the message is one line that names the
        remedy.
    """
    if not train:
        return _open(config, config.eval_split, fields)
    configs = (config, *config.more_sources)
    sources = [_open(part, part.train_split, fields) for part in configs]
    if config.sampling == "balanced":
        labels_of(sources[0], 'data.sampling="balanced"')  # fails early if the source does not know its labels
    return mixture(sources, [part.weight for part in configs], [_name(part) for part in configs]) if config.more_sources else sources[0]


def _open(config: DataConfig | SourceConfig, split: str, fields: Sequence[str]) -> Source:
    if is_reference(config.source):
        source = _open_own(config, split)
    elif config.source == "scenes":
        _refuse_missing(config, FIELDS, fields)
        source = open_scenes(split, fields)
    else:
        with refuse_unreadable(config.data_dir):
            source = _open_kind(config, split, fields)
    _refuse_missing(config, fields_of(source), fields)
    return selected(source, fields)


def _refuse_missing(config: DataConfig | SourceConfig, there: Mapping[str, Kind], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise ConfigError(
            f'data.source={_name(config)} has no field "{missing[0]}", which the task needs; it has {", ".join(there)}: '
            "take other data, or another task"
        )


FILE_SOURCES = {"pairs": open_pairs, "coco": open_coco, "table": open_table, "tars": open_tars}  # sources that read `data.files`


def _open_kind(config: DataConfig | SourceConfig, split: str, fields: Sequence[str]) -> Source:
    if config.source == "bundled":
        return open_bundled(split)
    if config.source == "photographs":
        return open_photographs(split)
    if config.source in FILE_SOURCES:
        return FILE_SOURCES[config.source](config.data_dir, split, config.files, names=fields, follow_outside=config.follow_outside)
    if config.source == "image_folder":
        return open_images(config.data_dir, split, follow_outside=config.follow_outside)
    if config.source == "tfds":
        return open_tfds(config.name, config.data_dir, split, config.files, names=fields)
    return open_shards(config.data_dir, split)


def _open_own(config: DataConfig | SourceConfig, split: str) -> Source:
    """Opens a split of a user's own source; errors of its code pass unchanged."""
    source = load_reference(config.source)(split, data_dir=config.data_dir, name=config.name)
    if missing := [name for name in _INTERFACE if not hasattr(source, name)]:
        raise ConfigError(f"data.source={config.source} returns a {type(source).__name__} without {', '.join(missing)}: see Source")
    if source.channels not in (1, 3, declared_channels(fields_of(source))) or not len(source) or not isinstance(source.class_names, tuple):
        raise ConfigError(
            f"data.source={config.source}: channels={source.channels} must be 1 or 3 or declared, its {len(source)} images at least one, "
            f"class_names a tuple and not a {type(source.class_names).__name__}"
        )
    return source


def _name(config: DataConfig | SourceConfig) -> str:
    """Name of a source in errors about a mixture."""
    where = " ".join(filter(None, (config.name, config.data_dir)))
    return f"{config.source} {where}".strip() + f" ({config.train_split})"

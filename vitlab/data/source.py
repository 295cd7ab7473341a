"""Where the images come from: random access by index, one interface for all kinds."""

from typing import Any, Protocol, runtime_checkable

from vitlab.config import ConfigError, DataConfig
from vitlab.data.bundled import open_bundled
from vitlab.data.image_csv import open_images
from vitlab.data.shards import open_shards
from vitlab.data.tfds import open_tfds


@runtime_checkable
class Source(Protocol):
    """Labelled images by index. Reading is thread-safe, and the source pickles, so that worker processes can read it.

    A source that reads many images faster than one by one also has `__getitems__(indices) -> list of examples`.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        ...

    @property
    def channels(self) -> int:
        """Of its images: 1 (grey) or 3 (RGB)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Short hash of what it holds (files, sizes, labels): a resumed run compares it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": encoded bytes or uint8 [h, w, c], "label": int}."""
        ...

    def name_of(self, index: int) -> str:
        """What the log calls the image: its path, or "train/123"."""
        ...


def open_source(config: DataConfig, *, train: bool) -> Source:
    """Opens the training or the evaluation split.

    Raises:
      ConfigError: There is no such data; the message is one line that names the remedy.
    """
    split = config.train_split if train else config.eval_split
    if config.source == "bundled":
        return open_bundled(split)
    if config.source == "image_folder":
        return open_images(config.data_dir, split)
    if config.source == "tfds":
        return open_tfds(config.name, config.data_dir, split)
    if config.source == "shards":
        return open_shards(config.data_dir, split)
    raise ConfigError(f'data.source="{config.source}" must be one of "bundled", "image_folder", "tfds", "shards"')

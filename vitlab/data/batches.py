"""One batch as a function of its step: what the loader's threads and worker processes compute.

A batch is global; each of `process_count` processes makes its own contiguous rows of it. Rows that could not be decoded are
reported in "bad": the image's index, or -1.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vitlab.config import AugmentConfig
from vitlab.data.arrays import ArraySource
from vitlab.data.augment import Size, augment, draw_corners, draw_flips, flip, flip_rows, pad_crop, resize_and_center_crop
from vitlab.data.bad_images import BadImagesError, reason
from vitlab.data.decode import DecodeError, Decoder, decode
from vitlab.data.labels import labels_of
from vitlab.data.mixture import MixedSource
from vitlab.data.order import BalancedOrder, MixedOrder, ShuffledOrder, stream
from vitlab.data.policies import make_policy
from vitlab.data.source import Source

Batch = dict[str, np.ndarray]
_CHUNKS_PER_THREAD = 4  # so that a slow image does not hold up the batch, at little overhead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Shape of a batch, and which rows of it are this process's."""

    size: Size
    channels: int
    batch_size: int  # over all processes
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(f"batch_size={self.batch_size} must be a positive multiple of process_count={self.process_count}")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index={self.process_index} must be in [0, process_count={self.process_count})")
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels} must be 1 (grey) or 3 (RGB)")

    @property
    def rows(self) -> slice:
        """Rows of the global batch that are this process's."""
        count = self.batch_size // self.process_count
        return slice(self.process_index * count, (self.process_index + 1) * count)

    def positions(self, step: int) -> np.ndarray:
        """Where in the endless sequence of images the rows of `step` lie, int64 [b]."""
        return step * self.batch_size + np.arange(self.rows.start, self.rows.stop)

    def empty(self) -> Batch:
        """A batch of black images."""
        b = self.rows.stop - self.rows.start
        return {
            "image": np.zeros((b, *self.size, self.channels), np.uint8),
            "label": np.zeros(b, np.int32),
            "bad": np.full(b, -1, np.int64),
        }


class Threads:
    """Calls a function for chunks of the rows of a batch, on `num_threads` threads."""

    def __init__(self, num_threads: int):
        """No thread is started before the first batch of a source that is not in memory."""
        self.num_threads = num_threads
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def for_chunks(self, fn: Callable[[range], None], count: int) -> None:
        """Calls `fn` with ranges that make up `range(count)`, in any order; the first exception is raised."""
        if self.num_threads == 1:
            fn(range(count))
            return
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self.num_threads, "vitlab-data")
        size = max(1, -(-count // (self.num_threads * _CHUNKS_PER_THREAD)))
        jobs = [self._pool.submit(fn, range(start, min(start + size, count))) for start in range(0, count, size)]
        for job in jobs:
            job.result()

    def close(self) -> None:
        """Ends the threads, without beginning what has not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __getstate__(self):
        return {"num_threads": self.num_threads, "_pool": None}


class TrainBatch:
    """Step -> augmented batch of the shuffled, endless sequence."""

    def __init__(
        self,
        source: Source,
        config: AugmentConfig,
        layout: Layout,
        seed: int,
        threads: Threads,
        *,
        decode: Decoder = decode,
        balanced: bool = False,
    ):
        """The batch at a step depends on nothing but these (and not on `threads`).

        `decode` makes pixels of encoded images; `balanced` draws each class as often as any other.
        """
        self.source, self.config, self.layout, self.seed, self.threads, self.decode = source, config, layout, seed, threads, decode
        self.order = training_order(source, seed, repeats=config.repeats, balanced=balanced)
        self.policy = make_policy(config.policy) if config.policy else None
        # Whether something is done to each image by itself, even if it has the right size.
        self.alone = bool(config.crop == "random_resized" or config.policy or config.color_jitter)
        self.vectorised = not self.alone and _fits(source, layout)

    def __call__(self, step: int) -> Batch:
        """{"image": uint8 [b, h, w, c], "label": int32 [b], "bad": int64 [b]}."""
        batch, positions = self.layout.empty(), self.layout.positions(step)
        indices = self.order(positions)
        corners, flipped = self._draw(step)
        if self.vectorised and isinstance(self.source, ArraySource):
            batch["image"] = _repeat_grey(self.source.images[indices], self.layout.channels)
            batch["label"] = self.source.labels[indices]
            if self.config.flip:
                batch["image"] = flip(batch["image"], flipped)
        else:
            self.threads.for_chunks(lambda rows: self._fill(batch, rows, positions, indices, flipped), len(positions))
        if self.config.crop == "pad":
            batch["image"] = pad_crop(batch["image"], corners, self.config.pad)
        return batch

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Corners and flips of this process's rows, drawn for the whole batch so that the number of processes changes nothing."""
        rng, rows, count = stream("batch", self.seed, step), self.layout.rows, self.layout.batch_size
        flipped = draw_flips(rng, count) & self.config.flip
        return draw_corners(rng, count, self.config.pad)[rows], flipped[rows]

    def _fill(self, batch: Batch, rows: range, positions: np.ndarray, indices: np.ndarray, flipped: np.ndarray) -> None:
        for row, example in zip(rows, _read(self.source, indices[rows.start : rows.stop].tolist()), strict=True):
            decoded = _decoded(example, self.layout.channels, self.decode)
            if decoded is None:
                batch["bad"][row] = indices[row]
                decoded = self._next_decodable(int(indices[row]))
            pixels = decoded["image"]
            if self.alone or pixels.shape[:2] != self.layout.size:
                rng = stream("image", self.seed, int(positions[row]))
                pixels = augment(pixels, rng, self.config, self.layout.size, self.policy)
            batch["image"][row] = flip_rows(pixels) if flipped[row] else pixels
            batch["label"][row] = decoded["label"]

    def _next_decodable(self, index: int) -> dict[str, Any]:
        """The first example after `index` that can be decoded."""
        for other in (*range(index + 1, len(self.source)), *range(index)):
            decoded = _decoded(_read_one(self.source, other), self.layout.channels, self.decode)
            if decoded is not None:
                return decoded
        name, why = self.source.name_of(index), reason(self.source, index, self.decode)
        raise BadImagesError(f"none of the {len(self.source)} images can be decoded; one is {name} ({why})")


class EvalBatch:
    """Step -> batch of the images in their order; "mask" is False where there is none, or it cannot be decoded."""

    def __init__(
        self, source: Source, layout: Layout, interpolation: str, crop_fraction: float, threads: Threads, *, decode: Decoder = decode
    ):
        """See `resize_and_center_crop` for interpolation and crop; `decode` makes pixels of encoded images."""
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction={crop_fraction} must be in (0, 1]")
        self.source, self.layout, self.threads, self.decode = source, layout, threads, decode
        self.interpolation, self.crop_fraction = interpolation, crop_fraction
        self.vectorised = crop_fraction == 1 and _fits(source, layout)

    def __len__(self) -> int:
        return -(-len(self.source) // self.layout.batch_size)

    def __call__(self, step: int) -> Batch:
        """{"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b], "bad": int64 [b]}."""
        batch, positions = self.layout.empty(), self.layout.positions(step)
        batch["mask"] = positions < len(self.source)
        count = int(batch["mask"].sum())
        if self.vectorised and isinstance(self.source, ArraySource):
            batch["image"][:count] = self.source.images[positions[:count]]
            batch["label"][:count] = self.source.labels[positions[:count]]
            return batch

        self.threads.for_chunks(lambda rows: self._fill(batch, rows, positions), count)
        return batch

    def _fill(self, batch: Batch, rows: range, positions: np.ndarray) -> None:
        for row, example in zip(rows, _read(self.source, positions[rows.start : rows.stop].tolist()), strict=True):
            decoded = _decoded(example, self.layout.channels, self.decode)
            if decoded is None:
                batch["mask"][row], batch["bad"][row] = False, positions[row]
                continue
            batch["image"][row] = resize_and_center_crop(decoded["image"], self.layout.size, self.interpolation, self.crop_fraction)
            batch["label"][row] = decoded["label"]


def training_order(source: Source, seed: int, *, repeats: int = 1, balanced: bool = False) -> ShuffledOrder | MixedOrder | BalancedOrder:
    """Position in the endless sequence of training images -> index in the source.

    Raises:
      ConfigError: `balanced` is asked of a source that does not know its labels without reading its images.
    """
    if balanced:
        return BalancedOrder(labels_of(source, 'data.sampling="balanced"'), seed, repeats=repeats)
    if isinstance(source, MixedSource):
        return source.order(seed, repeats=repeats)
    return ShuffledOrder(len(source), seed, repeats=repeats)


def _read(source: Source, indices: list[int]) -> Iterable[dict[str, Any] | None]:
    """The examples, at once if the source can; None for one that cannot be read."""
    read_many = getattr(source, "__getitems__", None)
    if read_many:
        with contextlib.suppress(OSError):  # one of them; which, is found one by one
            return read_many(indices)
    return (_read_one(source, index) for index in indices)


def _read_one(source: Source, index: int) -> dict[str, Any] | None:
    try:
        return source[index]
    except OSError:
        return None


def _decoded(example: dict[str, Any] | None, channels: int, decode: Decoder) -> dict[str, Any] | None:
    """The example with its pixels, or None if there are none."""
    try:
        return None if example is None else example | {"image": decode(example["image"], channels)}
    except DecodeError:
        return None


def _fits(source: Source, layout: Layout) -> bool:
    """Whether whole batches can be taken from memory as they are; grey repeats into RGB by broadcasting."""
    return isinstance(source, ArraySource) and source.images.shape[1:3] == layout.size and source.channels <= layout.channels


def _repeat_grey(images: np.ndarray, channels: int) -> np.ndarray:
    return images if images.shape[-1] == channels else np.repeat(images, channels, axis=-1)

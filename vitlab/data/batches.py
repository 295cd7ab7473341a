"""One batch as a function of its step, as threads and worker processes compute it.

A batch is global; each of `process_count` processes computes its own contiguous rows. The array
"bad" has the index of each image that could not be decoded, -1 for the other rows.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vitlab.config import AugmentConfig, ConfigError
from vitlab.data.arrays import ArraySource
from vitlab.data.augment import (
    FITS,
    augment,
    draw_corners,
    draw_flips,
    evaluation_warp,
    flip,
    flip_rows,
    flipped_left_to_right,
    pad_crop,
    padded,
)
from vitlab.data.bad_images import BadImagesError, reason
from vitlab.data.decode import DecodeError, Decoder, decode
from vitlab.data.fields import CLASSIFICATION, Kind, declared_channels, decode_example, mirrored, with_images, with_names
from vitlab.data.labels import labels_of
from vitlab.data.mixture import MixedSource
from vitlab.data.order import BalancedOrder, MixedOrder, ShuffledOrder, stream
from vitlab.data.policies import make_policy
from vitlab.data.source import Source
from vitlab.data.warp import Size, Warp, size_of

Batch = dict[str, np.ndarray]
_CHUNKS_PER_THREAD = 4  # enough chunks that a slow image does not delay the batch, at little overhead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Shape of a batch, and the rows of it that this process computes."""

    size: Size
    channels: int
    batch_size: int  # images of all processes
    process_index: int
    process_count: int
    fields: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: CLASSIFICATION)

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(f"batch_size={self.batch_size} must be a positive multiple of process_count={self.process_count}")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index={self.process_index} must be in [0, process_count={self.process_count})")
        if self.channels not in (1, 3, declared_channels(self.fields)):
            raise ConfigError(f"channels={self.channels} must be 1 (grey) or 3 (RGB), or what the data declares: image=... channels=N")

    @property
    def rows(self) -> slice:
        """Rows of the global batch that this process computes."""
        count = self.batch_size // self.process_count
        return slice(self.process_index * count, (self.process_index + 1) * count)

    def positions(self, step: int) -> np.ndarray:
        """Positions of the rows of `step` in the endless sequence of images, int64 [b]."""
        return step * self.batch_size + np.arange(self.rows.start, self.rows.stop)

    def empty(self) -> Batch:
        """A batch of black images whose other fields are empty, see `Kind.empty`."""
        b = self.rows.stop - self.rows.start
        arrays = {name: kind.empty(b, self.size) for name, kind in with_images(self.fields, self.channels, decode).items()}
        return {**arrays, "bad": np.full(b, -1, np.int64)}


class Threads:
    """Applies a function to chunks of the rows of a batch, on `num_threads` threads."""

    def __init__(self, num_threads: int):
        """Starts no thread; the first call of `for_chunks` does."""
        self.num_threads = num_threads
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def for_chunks(self, fn: Callable[[range], None], count: int) -> None:
        """Calls `fn` with ranges that together are `range(count)`, in any order.

        The first exception is raised again.
        """
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
        """Ends the threads; work that has not begun is cancelled."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __getstate__(self):
        return {"num_threads": self.num_threads, "_pool": None}


class TrainBatch:
    """Maps a step to an augmented batch of the shuffled, endless sequence."""

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
        """Takes all that a batch depends on, besides the step; `threads` do not change the result.

        `decode` decodes images; with `balanced` each class is drawn equally often.
        """
        self.source, self.config, self.layout, self.seed, self.threads = source, config, layout, seed, threads
        self.fields = with_names(with_images(layout.fields, layout.channels, decode), source.class_names)
        self.others = _others(self.fields)
        _refuse_unsupported(self.fields, config)
        self.order = training_order(source, seed, repeats=config.repeats, balanced=balanced)
        self.policy = make_policy(config.policy) if config.policy else None
        # Whether each image is augmented by itself, even if it has the right size.
        self.alone = bool(config.crop in ("random_resized", "scale_jitter") or config.policy or config.color_jitter)
        self.vectorised = not self.alone and _fits(source, layout)

    def __call__(self, step: int) -> Batch:
        """Computes {"bad": int64 [b]} and an array [b, ...] for each field.

        For classification the fields are "image", uint8, and "label", int32.
        """
        batch, positions = self.layout.empty(), self.layout.positions(step)
        indices = self.order(positions)
        corners, flipped = self._draw(step)
        if self.vectorised and isinstance(self.source, ArraySource):
            batch["image"] = _repeat_grey(self.source.images[indices], self.layout.channels)
            batch["label"] = self.source.labels[indices]
            if self.config.flip:
                batch["image"] = flip(batch["image"], flipped)
        else:
            drawn = _Drawn(positions=positions, indices=indices, corners=corners, flipped=flipped)
            self.threads.for_chunks(lambda rows: self._fill(batch, rows, drawn), len(positions))
        if self.config.crop == "pad":
            batch["image"] = pad_crop(batch["image"], corners, self.config.pad)
        return batch

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Corners and flips of this process's rows.

        They are drawn for the whole batch, so that they do not depend on the number of processes.
        """
        rng, rows, count = stream("batch", self.seed, step), self.layout.rows, self.layout.batch_size
        flipped = draw_flips(rng, count) & self.config.flip
        return draw_corners(rng, count, self.config.pad)[rows], flipped[rows]

    def _fill(self, batch: Batch, rows: range, drawn: "_Drawn") -> None:
        for row, example in zip(rows, _read(self.source, drawn.indices[rows.start : rows.stop].tolist()), strict=True):
            decoded = _decoded(example, self.fields)
            if decoded is None:
                batch["bad"][row] = drawn.indices[row]
                decoded = self._next_decodable(int(drawn.indices[row]))
            if drawn.flipped[row] and self.others:
                decoded = mirrored(decoded, self.fields)
            pixels = decoded["image"]
            warp = Warp(size_of(pixels))
            if self.alone or warp.source != self.layout.size:
                rng = stream("image", self.seed, int(drawn.positions[row]))
                pixels, warp = augment(pixels, rng, self.config, self.layout.size, self.policy)
            batch["image"][row] = flip_rows(pixels) if drawn.flipped[row] else pixels
            if self.others:
                if drawn.flipped[row]:
                    warp = warp.then(flipped_left_to_right(self.layout.size))
                if self.config.crop == "pad":  # images are padded and cropped later, as a whole batch
                    warp = warp.then(padded(self.layout.size, drawn.corners[row].tolist(), self.config.pad))
                for name, kind in self.others.items():
                    batch[name][row] = kind.warp(decoded[name], warp)

    def _next_decodable(self, index: int) -> dict[str, np.ndarray]:
        """The first example after `index` that can be decoded."""
        for other in (*range(index + 1, len(self.source)), *range(index)):
            decoded = _decoded(_read_one(self.source, other), self.fields)
            if decoded is not None:
                return decoded
        name, why = self.source.name_of(index), reason(self.source, index, self.fields)
        raise BadImagesError(f"none of the {len(self.source)} images can be decoded; one is {name} ({why})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Random numbers for the rows of a batch, each [b]."""

    positions: np.ndarray
    indices: np.ndarray
    corners: np.ndarray  # [b, 2]
    flipped: np.ndarray


class EvalBatch:
    """Maps a step to a batch of the images in their order.

    "mask" is False in rows that are padding or whose image cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        layout: Layout,
        interpolation: str,
        crop_fraction: float,
        threads: Threads,
        *,
        decode: Decoder = decode,
        fit: str = "crop",
    ):
        """Takes interpolation, crop and fit as `resize_and_center_crop` and `evaluation_warp` do.

        `crop_fraction` applies to `fit="crop"` only; "stretch" and "letterbox" show the whole
        image. `decode` decodes images.
        """
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction={crop_fraction} must be in (0, 1]")
        if fit not in FITS:
            raise ValueError(f"{fit=} must be one of {', '.join(FITS)}")
        self.source, self.layout, self.threads = source, layout, threads
        self.fields = with_names(with_images(layout.fields, layout.channels, decode), source.class_names)
        self.others = _others(self.fields)
        self.interpolation, self.crop_fraction, self.fit = interpolation, crop_fraction, fit
        self.vectorised = (crop_fraction == 1 or fit != "crop") and _fits(source, layout)

    def __len__(self) -> int:
        return -(-len(self.source) // self.layout.batch_size)

    def __call__(self, step: int) -> Batch:
        """Computes the fields as in training, and "mask" bool, "index" int64, "bad" int64, all [b].

        "index" is the image's index in the source; in padding rows it is beyond the last image.
        """
        batch, positions = self.layout.empty(), self.layout.positions(step)
        batch["mask"], batch["index"] = positions < len(self.source), positions
        count = int(batch["mask"].sum())
        if self.vectorised and isinstance(self.source, ArraySource):
            batch["image"][:count] = self.source.images[positions[:count]]
            batch["label"][:count] = self.source.labels[positions[:count]]
            return batch

        self.threads.for_chunks(lambda rows: self._fill(batch, rows, positions), count)
        return batch

    def _fill(self, batch: Batch, rows: range, positions: np.ndarray) -> None:
        for row, example in zip(rows, _read(self.source, positions[rows.start : rows.stop].tolist()), strict=True):
            decoded = _decoded(example, self.fields)
            if decoded is None:
                batch["mask"][row], batch["bad"][row] = False, positions[row]
                continue
            warp = evaluation_warp(size_of(decoded["image"]), self.layout.size, self.interpolation, self.crop_fraction, self.fit)
            batch["image"][row] = warp.apply(decoded["image"])
            for name, kind in self.others.items():
                batch[name][row] = kind.warp(decoded[name], warp)


def _others(fields: Mapping[str, Kind]) -> dict[str, Kind]:
    return {name: kind for name, kind in fields.items() if name != "image"}


def _refuse_unsupported(fields: Mapping[str, Kind], config: AugmentConfig) -> None:
    for name, kind in fields.items():
        if reason := kind.unsupported_reason(config):
            raise ConfigError(f"{name} cannot be augmented so: {reason}")


def training_order(source: Source, seed: int, *, repeats: int = 1, balanced: bool = False) -> ShuffledOrder | MixedOrder | BalancedOrder:
    """Maps positions in the endless sequence of training images to indices in the source.

    Raises:
      ConfigError: `balanced` needs a source that knows its labels without reading its images.
    """
    if balanced:
        return BalancedOrder(labels_of(source, 'data.sampling="balanced"'), seed, repeats=repeats)
    if isinstance(source, MixedSource):
        return source.order(seed, repeats=repeats)
    return ShuffledOrder(len(source), seed, repeats=repeats)


def _read(source: Source, indices: list[int]) -> Iterable[dict[str, Any] | None]:
    """The examples, read at once if the source can; None for each that cannot be read."""
    read_many = getattr(source, "__getitems__", None)
    if read_many:
        with contextlib.suppress(OSError):  # one example cannot be read; reading one by one finds which
            return read_many(indices)
    return (_read_one(source, index) for index in indices)


def _read_one(source: Source, index: int) -> dict[str, Any] | None:
    try:
        return source[index]
    except OSError:
        return None


def _decoded(example: dict[str, Any] | None, fields: Mapping[str, Kind]) -> dict[str, np.ndarray] | None:
    """The decoded example, or None if it cannot be decoded."""
    try:
        return None if example is None else decode_example(example, fields)
    except DecodeError:
        return None


def _fits(source: Source, layout: Layout) -> bool:
    """Whether batches are plain slices of images in memory, of the right size and fields.

    Grey images repeat into RGB by broadcasting.
    """
    if not isinstance(source, ArraySource) or layout.fields.keys() != CLASSIFICATION.keys():
        return False
    return source.images.shape[1:3] == layout.size and source.channels <= layout.channels


def _repeat_grey(images: np.ndarray, channels: int) -> np.ndarray:
    return images if images.shape[-1] == channels else np.repeat(images, channels, axis=-1)

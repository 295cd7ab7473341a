"""The input pipeline: batches are computed ahead of training, on threads or in worker processes.

Threads are Grain's.
"""

import dataclasses
import logging
from collections.abc import Iterator

import grain

from vitlab.buckets import RunPath
from vitlab.config import AugmentConfig, DataConfig
from vitlab.cores import usable_cores
from vitlab.data.bad_images import BadImages
from vitlab.data.batches import Batch, EvalBatch, Layout, Threads, TrainBatch
from vitlab.data.decode import decoder
from vitlab.data.fields import fields_of
from vitlab.data.source import Source
from vitlab.data.workers import Workers

logger = logging.getLogger(__name__)

_AHEAD = 2  # batches that are ready ahead of the step
_LAST_STEP = 2**48  # number of training steps, never reached


class Batches(Iterator[Batch]):
    """An iterator over batches, to be closed or used in a `with`.

    `bad` has the images that were left out.
    """

    def __init__(self, batches: Iterator[Batch], bad: BadImages, threads: Threads):
        """Takes Grain's iterator, or one over worker processes."""
        self._batches, self._threads, self.bad = batches, threads, bad
        self._closed = False

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          BadImagesError: More images cannot be decoded than allowed.
        """
        batch = next(self._batches)
        missing = batch.pop("bad")
        for index in missing[missing >= 0]:
            self.bad.add(int(index))
        return batch

    def close(self) -> None:
        """Ends the threads and worker processes, and logs the bad images; may be called twice."""
        if self.bad.reasons and not self._closed:
            logger.warning(self.bad.summary())
        self._closed = True
        self._batches.close()  # type: ignore[attr-defined]
        self._threads.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def train_batches(  # noqa: PLR0913  source, recipe and machine meet in the loader
    source: Source,
    *,
    augment: AugmentConfig,
    data: DataConfig,
    image_size: tuple[int, int] | int,
    channels: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    bad_images: RunPath | None = None,
) -> Batches:
    """Endless training batches from `start_step` on, shuffled anew in each epoch.

    A batch is a function of (source, augment, size, batch_size, seed, step), whatever the number of
    threads, workers, processes and restarts. A batch may hold the end of one epoch and the
    beginning of the next. In a mixture each source has its own epochs, see
    `vitlab.data.order.MixedOrder`.

    Args:
      source: The images of the training split.
      augment: The augmentation.
      data: Threads, workers, decoding, sampling, and the allowed fraction of bad images.
      image_size: Pixels, (height, width) or the side of a square.
      channels: Channels of the batch, 1 or 3; grey is repeated into RGB, RGB is reduced to its
        luma.
      batch_size: Images per step, over all processes.
      seed: Seed of order and augmentation, at least 0.
      start_step: Step of the first batch.
      process_index: Index of this process, which gets the rows [index * b, (index + 1) * b) with b
        = batch_size / process_count.
      process_count: Number of processes of the run.
      bad_images: File that lists the images left out, see `BadImages`; None writes none.

    Returns:
      An iterator of {"image": uint8 [b, h, w, c], "label": int32 [b]}, or the source's own fields
      in place of the label, with `close()` and `bad`. An image that cannot be decoded, or whose
      fields are invalid, is replaced by the next image of the source.

    Raises:
      ValueError: batch_size is no multiple of process_count, another number is out of range, or
        balanced sampling needs labels that the source does not know.
    """
    layout = _layout(source, image_size, channels, batch_size, process_index, process_count)
    threads = Threads(_threads_per_worker(data.num_threads, data.num_workers))
    decode = decoder(data)
    make = TrainBatch(source, augment, layout, seed, threads, decode=decode, balanced=data.sampling == "balanced")
    steps = _Steps(make, start_step)
    batches = Workers(steps, data.num_workers) if data.num_workers > 0 else steps(0, 1)
    bad = BadImages(source, data.max_bad_fraction, split=data.train_split, path=bad_images, fields=make.fields)
    return Batches(batches, bad, threads)


def eval_batches(  # noqa: PLR0913  as in `train_batches`
    source: Source,
    *,
    data: DataConfig,
    image_size: tuple[int, int] | int,
    channels: int,
    batch_size: int,
    interpolation: str = "bicubic",
    crop_fraction: float = 1.0,
    fit: str = "crop",
    process_index: int = 0,
    process_count: int = 1,
    bad_images: RunPath | None = None,
) -> Batches:
    """Every image of the source once, in its order; the last batch is padded.

    Threads compute the batches, without worker processes.

    Args:
      source: The images of the evaluation split.
      data: Threads, decoding, and the allowed fraction of bad images.
      image_size: Pixels, (height, width) or the side of a square.
      channels: Channels of the batch, 1 or 3.
      batch_size: Images per batch, over all processes; all processes get the same number of
        batches.
      interpolation: "bicubic" or "bilinear", antialiased as Pillow does.
      crop_fraction: Side of the central crop over side of the resized image, in (0, 1]; for "crop".
      fit: "crop" (resized central crop), "stretch" (whole image without its proportions), or
        "letterbox" (whole image between bars).
      process_index: Index of this process.
      process_count: Number of processes of the run.
      bad_images: File that lists the images left out.

    Returns:
      An iterator of {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b], "index":
      int64 [b]}, or the source's own fields in place of the label, with `close()` and `bad`. The
      mask is False where a row is padding or its image cannot be decoded.

    Raises:
      ValueError: A number is out of range, or batch_size is no multiple of process_count.
    """
    layout = _layout(source, image_size, channels, batch_size, process_index, process_count)
    threads = Threads(_threads_per_worker(data.num_threads, 0))
    decode = decoder(data)
    make = EvalBatch(source, layout, interpolation, crop_fraction, threads, decode=decode, fit=fit)
    steps = grain.MapDataset.range(len(make)).map(make)
    batches = iter(steps.to_iter_dataset(_read_options(make, threads)))
    bad = BadImages(source, data.max_bad_fraction, split=data.eval_split, path=bad_images, fields=make.fields)
    return Batches(batches, bad, threads)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The training batches of every `count`-th step, in one of `count` workers or in the run."""

    make: TrainBatch
    start_step: int

    def __call__(self, index: int, count: int) -> Iterator[Batch]:
        steps = grain.MapDataset.range(self.start_step + index, _LAST_STEP, count).map(self.make)
        return iter(steps.to_iter_dataset(_read_options(self.make, self.make.threads)))


def _layout(
    source: Source, image_size: tuple[int, int] | int, channels: int, batch_size: int, process_index: int, process_count: int
) -> Layout:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return Layout(
        size=size,
        channels=channels,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        fields=fields_of(source),
    )


def _threads_per_worker(num_threads: int, num_workers: int) -> int:
    return num_threads or max(1, usable_cores() // max(1, num_workers))


def _read_options(make: TrainBatch | EvalBatch, threads: Threads) -> grain.ReadOptions:
    """Lets one thread read ahead of the step.

    With a pool of threads a second one begins the next batch while the pool finishes the last.
    """
    alone = make.vectorised or threads.num_threads == 1
    return grain.ReadOptions(num_threads=1 if alone else 2, prefetch_buffer_size=_AHEAD)

"""Times each stage of the input pipeline: python -m vitlab.input_benchmark --config=configs/x.py.

Each stage is timed by itself on one thread, with the images it needs in memory; "loader" is the
whole input with the threads and workers of the config. With --step_images_per_second=X the command
says whether the input keeps up with a step of that speed.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vitlab import cli
from vitlab.config import AugmentConfig, ConfigError, Experiment, refusing
from vitlab.cores import usable_cores
from vitlab.data.arrays import ArraySource
from vitlab.data.batches import Layout, Threads, TrainBatch, training_order
from vitlab.data.channels import model_channels
from vitlab.data.decode import DecodeError, decoder
from vitlab.data.fields import Boxes, Kind, decode_example, fields_of, with_images
from vitlab.data.loader import train_batches
from vitlab.data.source import Source, open_source
from vitlab.models.registry import model_config
from vitlab.tasks import names_of, task_of

_SAMPLE = 256  # number of images that the stages are timed on
_CHUNK = 16  # number of images read at once
_WARM_UP = 4  # first batches, not timed, since the loader may have made them before the clock starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """A source of images in memory, of any sizes."""

    examples: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]
    channels: int
    fields: Mapping[str, Kind]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]

    def name_of(self, index: int) -> str:
        """The index as a name."""
        return str(index)


def measure(experiment: Experiment, *, batch_size: int, seconds: float) -> Iterator[tuple[str, float]]:
    """Times the stages of the training input.

    Args:
      experiment: Its data, augmentation and image size are used.
      batch_size: Images per batch, over all devices.
      seconds: Seconds per stage.

    Yields:
      Name and images per second of "read", "decode", "augment", "batch", "device put" and "loader".

    Raises:
      ConfigError: There is no such data or model, or no image of the sample can be decoded.
    """
    source = open_source(experiment.data, train=True, fields=names_of(*task_of(experiment)))
    channels = model_channels(experiment.model, source.channels)
    kinds = with_images(fields_of(source), channels, decoder(experiment.data))
    balanced = experiment.data.sampling == "balanced"
    indices = training_order(source, experiment.seed, balanced=balanced)(np.arange(min(_SAMPLE, len(source)))).tolist()
    layout = Layout(
        size=_image_size(experiment), channels=channels, batch_size=batch_size, process_index=0, process_count=1, fields=fields_of(source)
    )

    yield "read", _rate(lambda: sum(len(_read(source, indices[i : i + _CHUNK])) for i in range(0, len(indices), _CHUNK)), seconds)
    examples = _read(source, indices)
    yield "decode", _rate(lambda: len(_decode(examples, kinds)), seconds)
    decoded = _decode(examples, kinds)
    if not decoded:
        raise ConfigError(f"none of {len(indices)} images of {experiment.data.train_split} can be decoded")
    yield from _measure_batches(source, decoded, experiment, layout, seconds)
    yield "loader", _loader_rate(source, experiment, layout, seconds)


def _measure_batches(
    source: Source, decoded: Sequence[dict[str, Any]], experiment: Experiment, layout: Layout, seconds: float
) -> Iterator[tuple[str, float]]:
    """Rates of the stages after decoding: augmentation, making of the batch, transfer to a device.

    The time of the augmentation is the difference between batches with and without it.
    """
    in_memory = source if isinstance(source, ArraySource) else _in_memory(decoded, layout)
    augmented = TrainBatch(in_memory, experiment.augment, layout, experiment.seed, Threads(1))
    fitted = augmented(0)
    if augmented.vectorised:
        ready = ArraySource(images=fitted["image"], labels=fitted["label"], class_names=source.class_names)
    else:
        ready = _in_memory([_row(fitted, index, layout.fields) for index in range(layout.batch_size)], layout)
    plain = TrainBatch(ready, AugmentConfig(crop="center", flip=False), layout, experiment.seed, Threads(1))
    with_augmentation, without = (_step_rate(make, layout, seconds) for make in (augmented, plain))
    rest = 1 / with_augmentation - 1 / without
    yield "augment", 1 / rest if rest > 0 else float("inf")
    yield "batch", without
    yield "device put", _rate(lambda: len(jax.block_until_ready(jax.device_put(fitted))["image"]), seconds)


def _in_memory(examples: Sequence[dict[str, Any]], layout: Layout) -> Decoded:
    return Decoded(examples=examples, class_names=(), channels=layout.channels, fields=layout.fields)


def _row(batch: Mapping[str, np.ndarray], index: int, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """One example of a batch; its rows of boxes that are void are left out."""
    rows = {name: batch[name][index] for name in kinds}
    return {name: row[row[:, 4] != Boxes.void] if isinstance(kinds[name], Boxes) else row for name, row in rows.items()}


def _step_rate(make: TrainBatch, layout: Layout, seconds: float) -> float:
    steps = iter(range(2**62))
    return _rate(lambda: layout.batch_size * bool(make(next(steps))), seconds)


def _loader_rate(source: Source, experiment: Experiment, layout: Layout, seconds: float) -> float:
    batches = train_batches(
        source,
        augment=experiment.augment,
        data=experiment.data,
        image_size=layout.size,
        channels=layout.channels,
        batch_size=layout.batch_size,
        seed=experiment.seed,
    )
    with batches:
        for _ in range(_WARM_UP):
            next(batches)
        return _rate(lambda: len(next(batches)["image"]), seconds, warm_up=False)


def _rate(fn: Callable[[], int], seconds: float, *, warm_up: bool = True) -> float:
    """Images per second of `fn`, which returns its number of images and is called for `seconds`."""
    if warm_up:
        fn()
    count, begin = 0, time.perf_counter()
    while True:
        count += fn()
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return count / elapsed


def _read(source: Source, indices: list[int]) -> list[dict[str, Any]]:
    """Reads the examples that can be read."""
    read_many = getattr(source, "__getitems__", None) or (lambda indices: [source[index] for index in indices])
    try:
        return list(read_many(indices))
    except OSError:
        return [] if len(indices) == 1 else [example for index in indices for example in _read(source, [index])]


def _decode(examples: Sequence[dict[str, Any]], kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """Decodes the examples that can be decoded."""
    decoded = []
    for example in examples:
        try:
            decoded.append(decode_example(example, kinds))
        except DecodeError:
            continue
    return decoded


def _image_size(experiment: Experiment) -> tuple[int, int]:
    size = experiment.model.image_size
    with refusing(ValueError):
        size = size or model_config(experiment.model.name, **experiment.model.fields).image_size
    return (size, size) if isinstance(size, int) else size


def verdict(rates: dict[str, float], wanted: float) -> str:
    """Whether the loader keeps up with a step of `wanted` images per second, or what is slow."""
    if rates["loader"] >= wanted:
        return f"the input keeps up: {rates['loader']:,.0f} images/s, the step takes {wanted:,.0f}"
    slowest = min(("read", "decode", "augment", "batch"), key=rates.__getitem__)
    return (
        f"the input is too slow: {rates['loader']:,.0f} images/s, the step takes {wanted:,.0f}; "
        f"{slowest} is the slowest stage, and about {wanted / rates['loader']:.1f} times the cores are needed"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.Parser(
        prog="python -m vitlab.input_benchmark",
        description=__doc__.split("\n")[0],
        example="python -m vitlab.input_benchmark --config=configs/quickstart.py",
        keys=True,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help=cli.CONFIG_HELP)
    parser.add_argument("--batch_size", type=_positive(int), help="images; without it the config's, at most 256")
    parser.add_argument("--seconds", type=_positive(float), default=3.0, help="per stage")
    parser.add_argument("--step_images_per_second", type=_positive(float), help="speed of a step that the input must keep up with")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    experiment = cli.load_experiment(args.config, overrides)
    cli.begin()
    rates = {}
    for name, rate in measure(experiment, batch_size=args.batch_size or min(experiment.batch_size, 256), seconds=args.seconds):
        rates[name] = rate
        print(f"{name:<12}{rate:>12,.0f} images/s  ({_how(name, experiment)})", flush=True)
    if args.step_images_per_second:
        print(verdict(rates, args.step_images_per_second))
    return 0


def _how(name: str, experiment: Experiment) -> str:
    if name == "loader":
        data, cores = experiment.data, usable_cores()
        return f"all of it, num_threads={data.num_threads}, num_workers={data.num_workers}, {cores} cores"
    return f"to one {jax.local_devices()[0].device_kind}" if name == "device put" else "one thread"


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} must be positive")
        return value

    return parse


if __name__ == "__main__":
    cli.run(main)

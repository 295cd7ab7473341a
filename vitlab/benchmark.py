"""Measures speed and cost of a zoo model here: python -m vitlab.benchmark --model=NAME [--train].

Prints one line: the median speed over several runs, the compile time, multiply-accumulates,
parameters and memory. Images are random and already on the device, so the input pipeline is not
measured.
"""

import argparse
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pallas_kernels.benchmark import median_seconds, versions
from vitlab import cli
from vitlab.analysis.counts import count_macs, count_params
from vitlab.config import ConfigError, Experiment, ModelConfig, typed
from vitlab.functional import FunctionalModel, Weights, build
from vitlab.models.registry import abstract_model
from vitlab.parallel.mesh import check_divides, make_mesh, place, replicated, shard_batch
from vitlab.train.periods import Periods
from vitlab.train.setup import make_step
from vitlab.train.step import compile_step, trace_step

NUM_CLASSES, CHANNELS = 1000, 3  # classes and image channels where the model's config leaves them open


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures of one model in one mode: the line that is printed, and a row of the CSV file."""

    model: str
    fields: str  # replaced fields of the family's config, KEY=VALUE
    mode: str  # train: one whole step of AdamW; eval: the logits
    device: str  # number of devices and their kind
    image_size: str  # pixels, height x width
    batch_size: int  # images, over all devices
    dtype: str
    compile_seconds: float
    images_per_second: float  # batch_size / median time, over all devices
    gmacs: float  # 1e9 multiply-accumulates of the forward pass on one image
    params: int
    peak_bytes: int  # per device: arguments, results and temporary arrays of the compiled program
    versions: str

    def line(self) -> str:
        """One line of text for a person to read."""
        return (
            f"{self.model}  {self.mode}  {self.device}  {self.image_size} x {self.batch_size} {self.dtype}  "
            f"compiled in {self.compile_seconds:.1f} s  {self.images_per_second:.4g} images/s  {self.gmacs:.3f} GMACs  "
            f"{self.params:,} parameters  {self.peak_bytes / 2**20:.1f} MiB"
        )


def measure(config: ModelConfig, *, batch_size: int, train: bool) -> Measurement:
    """Compiles and times one model on all local devices.

    Args:
      config: The model; num_classes and in_channels default to ImageNet's.
      batch_size: Images, over all devices.
      train: Whether to time a training step or the logits of an evaluation.

    Raises:
      ConfigError: There is no such model, its fields cannot work together, or the batch cannot be
        split over the devices.
    """
    mesh = make_mesh()
    check_divides("batch_size", batch_size, mesh)
    num_classes, channels = config.num_classes or NUM_CLASSES, config.in_channels or CHANNELS
    model, create_weights = build(config, num_classes=num_classes, channels=channels, seed=0)
    height, width = model.preprocessing.image_size
    rng = np.random.default_rng(0)
    batch = shard_batch(
        {
            "image": rng.integers(0, 256, (batch_size, height, width, channels), np.uint8),
            "label": rng.integers(0, num_classes, batch_size, np.int32),
        },
        mesh,
    )
    start = _train if train else _evaluate
    run, compiled, compile_seconds = start(config, model, create_weights, batch, mesh)
    seconds = median_seconds(run)
    memory = compiled.memory_analysis()
    given = {"image_size": (height, width), "drop_path_rate": config.drop_path_rate, "dtype": config.dtype, **config.fields}
    abstract = abstract_model(config.name, num_classes=num_classes, in_channels=channels, **given)
    devices = mesh.devices.ravel()
    return Measurement(
        model=config.name,
        fields=" ".join(f"{key}={value}" for key, value in config.fields.items()),
        mode="train" if train else "eval",
        device=f"{len(devices)} x {devices[0].device_kind}",
        image_size=f"{height}x{width}",
        batch_size=batch_size,
        dtype=config.dtype,
        compile_seconds=round(compile_seconds, 2),
        images_per_second=float(f"{batch_size / seconds:.4g}"),
        gmacs=round(count_macs(abstract) / 1e9, 4),
        params=count_params(abstract),
        peak_bytes=sum(getattr(memory, f"{part}_size_in_bytes") * sign for part, sign in _PARTS.items()),
        versions=versions(),
    )


_PARTS = {"argument": 1, "output": 1, "temp": 1, "alias": -1}  # result buffers that reuse argument buffers count once


def _train(config: ModelConfig, model: FunctionalModel, create_weights: Callable[[], Weights], batch: Any, mesh: jax.sharding.Mesh):
    periods = Periods(total=1, warmup=0, log=1, evaluate=1, save=1)
    experiment = Experiment(model=config, batch_size=len(batch["label"]))
    step, create_state = make_step(experiment, model, periods, num_classes=config.num_classes or NUM_CLASSES)
    state = jax.jit(create_state, out_shardings=replicated(mesh))(place(create_weights(), mesh))
    compiled, seconds = compile_step(trace_step(step, state, batch, mesh))

    def run() -> None:
        nonlocal state  # the step reuses the memory of the old state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return run, compiled, seconds


def _evaluate(_config: ModelConfig, model: FunctionalModel, create_weights: Callable[[], Weights], batch: Any, mesh: jax.sharding.Mesh):
    weights = place(create_weights(), mesh)
    traced = jax.jit(lambda weights, images: model.apply(weights, images)[0]).trace(weights, batch["image"])
    compiled, seconds = compile_step(traced)
    return lambda: jax.block_until_ready(compiled(weights, batch["image"])), compiled, seconds


def check_columns(path: pathlib.Path) -> None:
    """Refuses a CSV file with other columns, before anything is measured.

    Raises:
      ConfigError: The file has other columns.
    """
    if path.exists():
        with path.open(newline="") as file:
            head = next(csv.reader(file), [])
        if head != list(_COLUMNS):
            raise ConfigError(f"{path} has the columns {', '.join(head)} in place of {', '.join(_COLUMNS)}: name another file")


def append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file; a new file gets a header first."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


_COLUMNS = tuple(field.name for field in dataclasses.fields(Measurement))


def _field(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} has no value: write {text}=value")
    return key, cli.literal(value)


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.Parser(
        prog="python -m vitlab.benchmark",
        description=__doc__.split("\n")[0],
        example="python -m vitlab.benchmark --model=swin_tiny --train --batch_size=8",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a model of the zoo")
    parser.add_argument("--train", action="store_true", help="a step of training, else the logits of the evaluation")
    parser.add_argument("--image_size", type=cli.literal, help="pixels, 512 or (512,1024) for height and width; the variant's by default")
    parser.add_argument("--batch_size", type=int, default=8, help="images per step, over all devices")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--field", type=_field, action="append", default=[], metavar="KEY=VALUE", help="of the family's config")
    parser.add_argument("--output", type=pathlib.Path, help="CSV file to which the line is added")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise ConfigError(f"batch_size={args.batch_size} must be at least 1")
    if args.output is not None:
        check_columns(args.output)
    cli.begin()
    fields = dict(args.field)
    own = {key: fields.pop(key) for key in ("num_classes", "in_channels", "drop_path_rate") if key in fields}
    size = typed(args.image_size, tuple[int, int] | int | None, ("image_size",))
    config = ModelConfig(name=args.model, image_size=size, dtype=args.dtype, fields=fields, **own)
    measurement = measure(config, batch_size=args.batch_size, train=args.train)
    print(measurement.line())
    if args.output is not None:
        append(args.output, dataclasses.asdict(measurement))
    return 0


if __name__ == "__main__":
    cli.run(main)

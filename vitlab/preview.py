"""Draws a training batch: python -m vitlab.preview --config=configs/x.py --output=sheet.png.

The contact sheet shows the images of a step (--step=N), cropped, augmented, erased and mixed, each
with its class below, or with two classes and their shares where mixup or cutmix has mixed it. For
other tasks each image is followed by its fields, drawn over it. To see what the host alone does:
--config.mix.prob=0 --config.augment.erase_prob=0.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitlab import cli
from vitlab.config import ConfigError, Experiment, LossConfig, refusing
from vitlab.cores import usable_cores
from vitlab.data.bad_images import BadImagesError
from vitlab.data.batches import Batch, Layout, Threads, TrainBatch
from vitlab.data.channels import model_channels
from vitlab.data.decode import decoder
from vitlab.data.fields import fields_of
from vitlab.data.policies import make_policy
from vitlab.data.samples import as_picture
from vitlab.data.source import Source, open_source
from vitlab.drawing.sheet import contact_sheet
from vitlab.models.catalogue import preprocessing_of
from vitlab.models.registry import Preprocessing, model_config
from vitlab.printable import printable
from vitlab.tasks import class_names_of, names_of, setting_of, task_of

_SHOWN = 0.005  # smallest share of a class that gets a line


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Some images of a batch as the model gets them, before normalisation."""

    images: UInt8[np.ndarray, "n h w c"]  # the noise of erasing is clipped to [0, 255]
    shares: Float[np.ndarray, "n classes"]  # share of each class in each image, without label smoothing
    class_names: tuple[str, ...]
    batch_size: int
    bad: int  # number of images of the batch that could not be decoded and were replaced


def sample(experiment: Experiment, *, step: int = 0, count: int = 64) -> Sample:
    """The first images of a training batch.

    The whole batch is made, since its images are mixed with each other.

    Args:
      experiment: Its data, augmentation, mixing, seed, batch size and image size are used.
      step: Number of updates before this batch.
      count: Number of images; fewer, if the batch is smaller.

    Raises:
      ConfigError: There is no such data, policy or model, a number is out of range, or no image can
        be decoded.
    """
    batch, source, preprocessing = _host_batch(experiment, step, count)
    prepared = _prepared(batch, step, experiment, preprocessing, len(source.class_names))
    return Sample(
        images=_pixels(prepared["image"])[:count],
        shares=prepared["target"][:count],
        class_names=source.class_names,
        batch_size=experiment.batch_size,
        bad=int((batch["bad"] >= 0).sum()),
    )


def field_sheet(experiment: Experiment, *, step: int = 0, count: int = 64) -> tuple[Image.Image, int]:
    """Draws the first images of a training batch of any task, and gives their number.

    Each image is followed by its fields, drawn over it. Arguments and errors are those of `sample`.
    """
    batch, source, preprocessing = _host_batch(experiment, step, count)
    prepared = _prepared(batch, step, experiment, preprocessing, len(class_names_of(source)))
    kinds = fields_of(source)
    images = prepared["image"][:count]
    images = _pixels(images) if batch["image"].dtype == np.uint8 else images
    cells, captions = [], []
    for row, pixels in enumerate(images):
        picture = as_picture(pixels)
        cells.append(picture)
        captions.append([])
        for name, kind in kinds.items():
            if name == "image":
                continue
            drawn, caption = kind.draw(picture, batch[name][row])
            if drawn is picture:
                captions[-1].append((f"{name}: {caption}", ""))
            else:
                cells.append(drawn)
                captions.append([(name, f" {caption}" if caption else "")])
    return contact_sheet(np.stack(cells), captions), len(images)


def _host_batch(experiment: Experiment, step: int, count: int) -> tuple[Batch, Source, Preprocessing]:
    """The batch of a step as the host makes it, its source, and the model's preprocessing."""
    if step < 0 or count < 1:
        raise ConfigError(f"--step={step} must be at least 0, --images={count} at least 1")
    source = open_source(experiment.data, train=True, fields=names_of(*task_of(experiment)))
    if experiment.augment.policy is not None:
        make_policy(experiment.augment.policy)  # raises if the policy is malformed
    preprocessing = _preprocessing(experiment, model_channels(experiment.model, source.channels))
    layout = Layout(
        size=preprocessing.image_size,
        channels=len(preprocessing.mean),
        batch_size=experiment.batch_size,
        process_index=0,
        process_count=1,
        fields=fields_of(source),
    )
    threads = Threads(experiment.data.num_threads or usable_cores())
    try:
        options = {"decode": decoder(experiment.data), "balanced": experiment.data.sampling == "balanced"}
        batch = TrainBatch(source, experiment.augment, layout, experiment.seed, threads, **options)(step)
    except BadImagesError as error:
        raise ConfigError(str(error)) from error
    finally:
        threads.close()
    return batch, source, preprocessing


def _preprocessing(experiment: Experiment, channels: int) -> Preprocessing:
    model = experiment.model
    size = {} if model.image_size is None else {"image_size": model.image_size}
    with refusing(ValueError):
        config = model_config(model.name, **size, **model.fields)
        own = preprocessing_of(model.name, model.weights, config.preprocessing)
        base = own.for_channels(channels).with_statistics(model.mean, model.std, model.max_value)
    return dataclasses.replace(base, image_size=config.image_size)


def _prepared(batch: Batch, step: int, experiment: Experiment, preprocessing: Preprocessing, num_classes: int) -> dict[str, np.ndarray]:
    """The batch as the step prepares it on the device, without label smoothing."""
    plain = dataclasses.replace(experiment, loss=LossConfig())
    task, options = task_of(plain)
    setting = setting_of(plain, options, preprocessing, num_classes=num_classes)
    rng = jax.random.fold_in(jax.random.key(experiment.seed), step)
    prepared = jax.jit(lambda batch: task.prepare(batch, rng, setting))({k: v for k, v in batch.items() if k != "bad"})
    return jax.tree.map(np.asarray, prepared)


def _pixels(images: np.ndarray) -> UInt8[np.ndarray, "b h w c"]:
    """Images as pictures; the noise of erasing is clipped to [0, 255]."""
    return images if images.dtype == np.uint8 else images.clip(0, 255).round().astype(np.uint8)


def draw(sample: Sample) -> Image.Image:
    """The contact sheet: each image with the names of its classes."""
    return contact_sheet(sample.images, [_captions(shares, sample.class_names) for shares in sample.shares])


def _captions(shares: Float[np.ndarray, " classes"], class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and share of an image's two largest classes; a single class has no share."""
    labels = [int(i) for i in np.argsort(-shares, kind="stable")[:2] if shares[i] >= _SHOWN]
    return [(class_names[i], f" {shares[i]:.0%}" if len(labels) > 1 else "") for i in labels]


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.Parser(
        prog="python -m vitlab.preview",
        description=__doc__.split("\n")[0],
        example="python -m vitlab.preview --config=configs/quickstart.py --output=sheet.png",
        keys=True,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help=cli.CONFIG_HELP)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the PNG to write")
    parser.add_argument("--step", type=int, default=0, help="updates before the batch")
    parser.add_argument("--images", type=int, default=64, help="how many of the batch's")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    experiment = cli.load_experiment(args.config, overrides)
    if args.output.suffix.lower() != ".png" or not args.output.parent.is_dir():
        raise ConfigError(f"--output={args.output} must be a file *.png in a folder that exists")
    cli.begin()
    if experiment.task.name == "classification":
        shown = sample(experiment, step=args.step, count=args.images)
        sheet, count, bad = draw(shown), len(shown.images), shown.bad
    else:
        (sheet, count), bad = field_sheet(experiment, step=args.step, count=args.images), 0
    try:
        sheet.save(args.output, "PNG")
    except OSError as error:
        raise ConfigError(f"--output={args.output} cannot be written: {error.strerror or error}") from error
    height, width = _preprocessing(experiment, 3).image_size
    replaced = f"; {bad} of the batch could not be decoded and were replaced" if bad else ""
    what = f"{count} of the {experiment.batch_size} images of step {args.step}, {width} x {height} pixels"
    print(f"{printable(args.output)}: {what}{replaced}")
    return 0


if __name__ == "__main__":
    cli.run(main)

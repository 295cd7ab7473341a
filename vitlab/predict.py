"""Applies a trained model to images: python -m vitlab.predict --workdir=DIR IMAGE...

For classification it prints the likeliest classes; for other tasks a line for each result and, with
--output=FOLDER, a file at the picture's own size and the picture with the result drawn over it. A
task of two pictures, such as stereo, takes them in turn: LEFT RIGHT LEFT RIGHT.

IMAGE is a file, a folder (with its subfolders), a pattern such as 'photos/**/*.jpg', or @list.txt,
a file with one of these on each line. The model is that of a run folder, or a model of the zoo with
a checkpoint that was trained elsewhere (--model=NAME --weights=FILE). Models with a text tower,
such as clip_base_patch16, choose among the words of --classes=FILE, put into the prompts of
--templates=FILE.

An image that cannot be read gets one line on stderr; the others are still predicted in their order.
Exit codes: 0 all images were predicted; 2 the command or the model cannot be used, or some images
could not be read, which are counted at the end.
"""

import argparse
import csv
import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vitlab import cli
from vitlab.config import ConfigError, Experiment, ModelConfig, refusing
from vitlab.data.decode import DecodeError, decoder
from vitlab.data.image_list import find_images
from vitlab.data.map_files import write_picture
from vitlab.data.read_image import read_image
from vitlab.files import write_atomically
from vitlab.models.registry import model_config
from vitlab.models.text_tower import text_config
from vitlab.printable import printable
from vitlab.runs.arguments import add_image_arguments, add_model_arguments, add_zero_shot_arguments, check_model_arguments, read_lines
from vitlab.runs.loaded import LoadedRun, Prediction, chunks, one_device, prepared_batches, softmax
from vitlab.runs.trained import Trained, from_run, from_weights
from vitlab.runs.zero_shot import read_templates, zero_shot

_SUFFIXES = (".csv", ".jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of one image."""

    path: str
    top: tuple[tuple[str, float], ...] = ()  # names and probabilities of the likeliest classes, the likeliest first
    error: str = ""  # why the image could not be read


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    args, overrides = _arguments(argv)
    paths = find_images(args.images, args.list)
    cli.begin()
    run = LoadedRun(_trained(args, overrides))
    if run.kinds:
        return _main_of_task(run, paths, args)
    if args.output and args.output.is_dir():
        raise ConfigError(f"--output={args.output} must be a file *.csv or *.jsonl for classes")
    answers = predict(run, paths, top=args.top, batch_size=args.batch_size)
    failed = _write(answers, args.output) if args.output else _print(answers)
    if args.output:
        print(f"{printable(args.output)}: {len(paths)} images" + (f", {failed} of them could not be read" if failed else ""))
    elif failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return cli.EXIT_USAGE if failed else 0


def predict(run: LoadedRun, paths: Iterable[str], *, top: int = 5, batch_size: int = 64) -> Iterator[Answer]:
    """Predicts files in their order, batch by batch, so that memory is bounded.

    Args:
      run: The loaded model.
      paths: Paths of the images.
      top: Classes per image; all, if the model has fewer.
      batch_size: Images that go through the model at once.
    """
    for batch in prepared_batches(run, paths, batch_size):
        pixels = [image for _, image in batch if not isinstance(image, str)]
        probabilities = iter(softmax(run.logits(np.stack(pixels))) if pixels else ())
        for path, image in batch:
            if isinstance(image, str):
                yield Answer(path=path, error=image)
            else:
                prediction = Prediction(probabilities=next(probabilities), class_names=run.class_names)
                yield Answer(path=path, top=prediction.top(top))


def _main_of_task(run: LoadedRun, paths: Sequence[str], args: argparse.Namespace) -> int:
    """Predicts pictures singly, or in pairs if the task takes two; writes results to a folder."""
    if args.output and not args.output.is_dir():
        raise ConfigError(
            f"--output={args.output} must be a folder that exists: task={run.experiment.task.name} writes files for each picture"
        )
    count = len(run.inputs)
    if len(paths) % count:
        raise ConfigError(
            f"task={run.experiment.task.name} takes {count} pictures each time ({', '.join(run.inputs)}); {len(paths)} were given"
        )
    failed = 0
    for group in chunks(paths, count):
        try:
            found = run.results(*group)
        except (DecodeError, OSError, ValueError) as error:
            failed += _complain(Answer(path=group[0], error=f"cannot be used: {getattr(error, 'strerror', None) or error}"))
            continue
        picture = read_image(group[0], 3, decoder(run.experiment.data))
        print(
            "\n".join(
                (printable(group[0]), *(f"  {line}" for line in _tell(run, pathlib.Path(group[0]).stem, picture, found, args.output)))
            )
        )
    if failed:
        print(f"{failed} of {len(paths) // count} could not be used", file=sys.stderr)
    return cli.EXIT_USAGE if failed else 0


def _tell(run: LoadedRun, stem: str, picture: np.ndarray, found: dict[str, np.ndarray], folder: pathlib.Path | None) -> Iterator[str]:
    """A line for each result, which is also written to a folder if one is given.

    A result that is no picture itself is then also drawn over the picture.
    """
    for name, kind in run.kinds.items():
        drawn, caption = kind.draw(picture, found[name])
        files, is_new = [], drawn is not picture and drawn is not found[name]
        if folder is not None:
            files = [folder / f"{stem}_{name}{kind.suffix}", *[folder / f"{stem}_{name}_overlay.png"] * is_new]
            kind.write(files[0], found[name])
            if is_new:
                write_picture(files[1], drawn)
        yield printable("  ".join(filter(None, (f"{name}: {caption}" if caption else name, *map(str, files)))))


def _print(answers: Iterable[Answer]) -> int:
    """Prints each image with a line per class; returns how many could not be read."""
    failed = 0
    for answer in answers:
        failed += _complain(answer)
        if not answer.error:
            lines = [f"  {probability:6.1%}  {printable(name)}" for name, probability in answer.top]
            print("\n".join((printable(answer.path), *lines)))
    return failed


def _write(answers: Iterable[Answer], path: pathlib.Path) -> int:
    """Writes all answers to one file; returns the number of images that could not be read."""
    kept = []
    for answer in answers:
        _complain(answer)
        kept.append(answer)
    text = _csv(kept) if path.suffix == ".csv" else "".join(_json_line(answer) for answer in kept)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # file names may be no valid UTF-8
    try:
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(f"--output={path} cannot be written: {error.strerror or error}") from error
    return sum(bool(answer.error) for answer in kept)


def _complain(answer: Answer) -> bool:
    if answer.error:
        print(f"error: {printable(answer.path)} {printable(answer.error)}", file=sys.stderr)
    return bool(answer.error)


def _csv(answers: Sequence[Answer]) -> str:
    """Rows of path, class_1, probability_1, class_2, ..., error under a header, a row an image."""
    count = max(len(answer.top) for answer in answers)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", *(f"{what}_{i + 1}" for i in range(count) for what in ("class", "probability")), "error"])
    for answer in answers:
        cells = [cell for name, probability in answer.top for cell in (name, f"{probability:.6g}")]
        writer.writerow([answer.path, *cells, *[""] * (2 * count - len(cells)), answer.error])
    return buffer.getvalue()


def _json_line(answer: Answer) -> str:
    found = [{"class": name, "probability": float(f"{probability:.6g}")} for name, probability in answer.top]
    rest = {"error": answer.error} if answer.error else {"predictions": found}
    return json.dumps({"path": answer.path, **rest}) + "\n"


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = cli.Parser(
        prog="python -m vitlab.predict",
        description=__doc__,
        example="python -m vitlab.predict --workdir=runs/quickstart picture.png",
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    add_zero_shot_arguments(parser)
    parser.add_argument("--top", type=int, default=5, help="classes per image, at least 1; 5 by default")
    parser.add_argument("--batch_size", type=int, default=64, help="images that go through the model at once; 64 by default")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FILE", help="*.csv or *.jsonl of classes in place of text; a folder for others"
    )
    add_image_arguments(parser)
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    check_model_arguments(args)
    for name in ("top", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}={getattr(args, name)} must be at least 1")
    if args.workdir and (args.classes or args.templates or args.tokenizer or overrides):
        raise ConfigError("--classes and --config.model.* describe a checkpoint of others (--model); a run folder has its own")
    if args.output and not args.output.is_dir() and (args.output.suffix not in _SUFFIXES or not args.output.parent.is_dir()):
        raise ConfigError(
            f"--output={args.output} must be a file *.csv or *.jsonl in a folder that exists, or for tasks with other results than "
            "classes a folder that exists"
        )
    return args, overrides


def _trained(args: argparse.Namespace, overrides: dict[str, str]) -> Trained:
    if args.workdir:
        return from_run(args.workdir, one_device(), raw=args.raw, step=args.step)
    experiment = cli.override(Experiment(model=ModelConfig(name=args.model)), overrides)
    names = read_lines(args.classes, "--classes") if args.classes else ()
    if text_config(args.model) is not None and experiment.model.num_classes is None:
        if not names:
            raise ConfigError(f"--model={args.model} knows no classes: say --classes=FILE, their names, one a line")
        options = {"templates": read_templates(args.templates), "vocabulary": args.tokenizer}
        return zero_shot(args.model, args.weights, experiment, names, one_device(), **options)
    if args.templates or args.tokenizer:
        raise ConfigError(f"--templates and --tokenizer are of models with a text tower; --model={args.model} is used without")
    names = names or tuple(map(str, range(_num_classes(experiment.model))))
    return from_weights(args.model, args.weights, experiment, names, one_device())


def _num_classes(model: ModelConfig) -> int:
    """The number of classes of a model: the config's, or else the variant's.

    Raises:
      ConfigError: There is no such model, or it was published without classes.
    """
    with refusing(ValueError):
        count = model.num_classes or model_config(model.name).num_classes
    if not count:
        raise ConfigError(f"--model={model.name} has no classes; --classes=FILE names those of a checkpoint with a head")
    return count


if __name__ == "__main__":
    cli.run(main)

"""Evaluates a model on the evaluation split: python -m vitlab.evaluate --workdir=DIR.

A checkpoint that was trained elsewhere takes --model=NAME --weights=FILE --config=configs/x.py. The
command prints one JSON object, and writes it into the run folder: to
evaluations/NAME/evaluation.json and, as the newest of its kind, to evaluation.json. --report adds
accuracy by class, confusions, calibration, the worst images and all predictions to
evaluations/NAME; for other tasks than classification, the loss of each image and the worst images.

Protocols: task (the metrics of the run's task; classification is another name of it where that is
the task); knn, linear (MAE's), linear_dinov2 and few_shot learn from features of the training split
without the model's head, so the classes may differ from the model's; zero_shot compares images with
the names of classes, by a checkpoint with a text tower: --model=clip_base_patch16 --weights=FILE;
original scores segmentation at the pictures' own size, by windows that slide over each; exits
scores each early exit of a network that has them, over its multiply-accumulates.

Exit codes: 0 done; 1 the report could not be written; 2 the command, run folder or data cannot be
used; 42 stopped by a signal.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vitlab import cli
from vitlab.buckets import Mirror, RunPath, in_bucket
from vitlab.config import ConfigError, Experiment, MeshConfig
from vitlab.data import Source, open_source
from vitlab.data.classes import different_classes
from vitlab.data.decode import decoder
from vitlab.evaluate.exits import check_exits, exits_evaluation, macs_of_exits
from vitlab.evaluate.exits import forward as forward_exits
from vitlab.evaluate.features import Features, extract
from vitlab.evaluate.few_shot import few_shot
from vitlab.evaluate.knn import knn
from vitlab.evaluate.linear_probe import DINOV2, linear_probe
from vitlab.evaluate.original_size import evaluate_at_original_size
from vitlab.evaluate.output import check_name, default_name, make_folder, write_result
from vitlab.evaluate.report import Outcomes, write_report
from vitlab.evaluate.split import evaluate, make_eval_step, open_batches
from vitlab.evaluate.worst import Worst, seen_of, write_worst
from vitlab.parallel import distributed
from vitlab.parallel.mesh import check_divides, make_mesh
from vitlab.runs import folder
from vitlab.runs.arguments import add_model_arguments, add_zero_shot_arguments, check_model_arguments, read_lines
from vitlab.runs.loaded import LoadedRun
from vitlab.runs.trained import Trained, from_run, from_weights, without_head
from vitlab.runs.zero_shot import read_templates, zero_shot
from vitlab.signals import EXIT_STOPPED, StopRequest
from vitlab.tasks import Task, class_names_of, names_of, setting_of, task_of
from vitlab.tasks.segmentation import Options as SegmentationOptions

logger = logging.getLogger(__name__)

_linear_dinov2 = functools.partial(linear_probe, training=DINOV2)
PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "knn": knn,
    "linear": linear_probe,
    "linear_dinov2": _linear_dinov2,
    "few_shot": few_shot,
}
ZERO_SHOT = "zero_shot"
_ALONE = ("original", "exits", *PROBES)  # protocols of a single process, which do not replace the run's evaluation.json


def main(argv: Sequence[str]) -> int:
    args, overrides = _arguments(argv)
    parent = args.output or (args.workdir and args.workdir / "evaluations")
    cli.begin()
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    if jax.process_count() > 1 and (args.report or args.protocol in _ALONE):
        raise ConfigError(f"--report and --protocol={', '.join(_ALONE)} run in one process, which may have several devices")
    experiment = _experiment(args, overrides)
    task, options = task_of(experiment)
    _check_task(args, experiment, task, options)
    if args.report:
        make_folder(parent)
    mesh = _make_mesh(experiment.mesh)
    check_divides("eval_batch_size", experiment.eval_batch_size or experiment.batch_size, mesh)
    fields = ("image", "label") if args.protocol in PROBES else names_of(task, options)
    source = open_source(experiment.data, train=False, fields=fields)
    trained = _trained(args, experiment, source, mesh)
    other_data = bool(args.config) or any(key.startswith("data.") for key in overrides)
    split = experiment.data.eval_split
    name = args.name or default_name(
        args.protocol if args.protocol in (ZERO_SHOT, *_ALONE) else "classification",
        trained.origin,
        split,
        source.fingerprint if other_data else None,
    )
    outcomes = None if not args.report else Outcomes() if experiment.task.name == "classification" else Worst()
    with StopRequest() as stop:
        should_stop = distributed.Vote(lambda: stop.requested)
        if args.protocol == "original":
            found = evaluate_at_original_size(trained, source, scales=args.scales, flip=args.flip, should_stop=should_stop)
        elif args.protocol == "exits":
            found = _measure_exits(trained, source, mesh, should_stop)
        elif args.protocol in PROBES:
            found = _probe(args.protocol, trained, source, mesh, should_stop, args.cache)
        else:
            found = _measure(trained, source, mesh, should_stop, outcomes)
    if found is None:
        return EXIT_STOPPED
    if not distributed.is_first():
        return 0
    result = {**trained.origin, "split": split, **({"protocol": args.protocol} if args.protocol in (ZERO_SHOT, *_ALONE) else {}), **found}
    described = _report(parent / name, outcomes, source, trained) if outcomes is not None else {}
    print(json.dumps(result | (described or {})))
    if parent:
        newest = [args.workdir] if args.workdir and not args.output and args.protocol not in _ALONE else []
        write_result(result | (described or {}), parent / name, *newest)
    return 0 if described is not None else 1


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = cli.Parser(
        prog="python -m vitlab.evaluate",
        description=__doc__,
        example="python -m vitlab.evaluate --workdir=runs/quickstart",
        keys=True,
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    parser.add_argument("--config", help=f"names the data; with --workdir the run's own if not given: {cli.CONFIG_HELP}")
    add_zero_shot_arguments(parser)
    choices = ("task", "classification", "original", "exits", ZERO_SHOT, *PROBES)
    parser.add_argument("--protocol", choices=choices, default="task", help="what is measured; the metrics of the run's task by default")
    parser.add_argument("--scales", default="1", help="with --protocol=original: sizes of each picture, such as 0.75,1,1.25")
    parser.add_argument("--flip", action="store_true", help="with --protocol=original: also each picture mirrored")
    parser.add_argument(
        "--cache", type=pathlib.Path, metavar="DIR", help=f"with --protocol={', '.join(PROBES)}: folder that keeps the features"
    )
    parser.add_argument("--report", action="store_true", help="also write tables, pictures and all predictions")
    parser.add_argument("--name", help="of this evaluation; made of step and split if not given")
    parser.add_argument("--output", type=cli.run_folder, metavar="DIR", help="folder for evaluations, in place of the run folder's")
    distributed.add_arguments(parser)
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    args.scales = _scales(args.scales)
    check_model_arguments(args)
    if args.protocol == ZERO_SHOT and not args.model:
        raise ConfigError(f"--protocol={ZERO_SHOT} needs a checkpoint with a text tower: --model=NAME --weights=FILE")
    if args.protocol != ZERO_SHOT and (args.classes or args.templates or args.tokenizer):
        raise ConfigError(f"--classes, --templates and --tokenizer are of --protocol={ZERO_SHOT}")
    if args.cache and args.protocol not in PROBES:
        raise ConfigError(f"--cache keeps features, which only --protocol={', '.join(PROBES)} have")
    if args.model and not args.config:
        raise ConfigError("--model needs --config=FILE, which names the data")
    if args.name is not None:
        check_name(args.name)
    if args.report and args.protocol in ("exits", *PROBES):
        raise ConfigError(f"--report describes the predictions of a model's head; --protocol={args.protocol} has none")
    if args.model and not args.output and (args.report or args.name):
        raise ConfigError("--report and --name of a checkpoint of others need --output=DIR, the folder to write to")
    return args, overrides


def _check_task(args: argparse.Namespace, experiment: Experiment, task: Task, options: Any) -> None:
    """Refuses protocols and options that do not fit the task of the run.

    Raises:
      ConfigError: An option does not fit; one line.
    """
    name = experiment.task.name
    if args.report and args.protocol == "original":
        raise ConfigError("--report describes the evaluation at the model's size: leave --protocol out")
    if args.protocol == "original" and not isinstance(options, SegmentationOptions):
        raise ConfigError(f"--protocol=original scores segmentation; the run was trained for task={name}")
    if args.protocol == ZERO_SHOT and name != "classification":
        raise ConfigError(f"--protocol={ZERO_SHOT} tells classes of images apart; the config is for task={name}")
    if args.protocol in ("classification", "exits") and name != "classification":
        raise ConfigError(f"the run was trained for task={name}: leave --protocol out, or name one of {', '.join(PROBES)}")
    if args.model and task.head is not None and args.protocol not in PROBES:
        raise ConfigError(f"a checkpoint of others has no head for task={name}: train one on it with model.weights={args.weights}")


def _scales(text: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.75,1,1.25".

    Raises:
      ConfigError: The text has another form, or a number is not above 0.
    """
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale <= 16 for scale in scales):
        raise ConfigError(f"--scales={text} must be numbers above 0 and up to 16, with commas between")
    return scales


def _experiment(args: argparse.Namespace, overrides: Mapping[str, str]) -> Experiment:
    """The experiment of the config file, or else of the run.

    Transparent pixels lie on the background of the training, unless an override says otherwise.
    """
    if not args.workdir:
        return cli.load_experiment(args.config, overrides)
    own, _ = folder.read(args.workdir)
    if not args.config:
        return cli.override(own, overrides)
    experiment = cli.load_experiment(args.config, overrides)
    if experiment.task != own.task:
        raise ConfigError(f"{args.config} is for task={experiment.task.name} and its options, the run for task={own.task.name} and its own")
    if "data.background" in overrides:
        return experiment
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, background=own.data.background))


def _trained(args: argparse.Namespace, experiment: Experiment, source: Source, mesh: Mesh) -> Trained:
    probe, names = args.protocol in PROBES, class_names_of(source)
    if args.protocol == ZERO_SHOT:
        words = read_lines(args.classes, "--classes") if args.classes else names
        if len(words) != len(names):
            raise ConfigError(f"--classes={args.classes} names {len(words)} classes, the data has {len(names)}: {', '.join(names[:10])}")
        options = {"words": words, "templates": read_templates(args.templates), "vocabulary": args.tokenizer}
        return zero_shot(args.model, args.weights, experiment, names, mesh, **options)
    if args.model:
        return from_weights(args.model, args.weights, experiment, names, mesh, head=not probe)
    trained = from_run(args.workdir, mesh, raw=args.raw, step=args.step)
    if probe:
        trained = without_head(trained)
    elif trained.class_names != names:
        differ = different_classes(trained.class_names, names, "the model", "the data")
        raise ConfigError(f"other classes: {differ}; --protocol=knn or linear measures features on any classes")
    return dataclasses.replace(trained, experiment=experiment)


def _measure(
    trained: Trained, source: Source, mesh: Mesh, should_stop: Callable[[], bool], outcomes: Outcomes | Worst | None
) -> dict[str, Any] | None:
    experiment, size = trained.experiment, trained.experiment.eval_batch_size or trained.experiment.batch_size
    batches = open_batches(trained.model, source, experiment, channels=trained.channels, batch_size=size, mesh=mesh)
    task, options = task_of(experiment)
    setting = setting_of(experiment, options, trained.model.preprocessing, num_classes=len(trained.class_names))
    evaluation = task.evaluation(setting)
    if isinstance(outcomes, Worst):
        evaluation = dataclasses.replace(evaluation, seen=seen_of(task, setting))
    step = make_eval_step(trained.model, mesh, evaluation, lambda batch: task.prepare(batch, None, setting), seen=outcomes is not None)
    return evaluate(step, trained.weights, batches, evaluation, mesh=mesh, should_stop=should_stop, see=outcomes)


def _measure_exits(trained: Trained, source: Source, mesh: Mesh, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
    check_exits(trained)
    experiment, size = trained.experiment, trained.experiment.eval_batch_size or trained.experiment.batch_size
    model = dataclasses.replace(trained.model, forward=forward_exits)
    batches = open_batches(model, source, experiment, channels=trained.channels, batch_size=size, mesh=mesh)
    evaluation = exits_evaluation(macs_of_exits(model))
    return evaluate(make_eval_step(model, mesh, evaluation), trained.weights, batches, evaluation, mesh=mesh, should_stop=should_stop)


def _probe(
    protocol: str, trained: Trained, source: Source, mesh: Mesh, should_stop: Callable[[], bool], cache: pathlib.Path | None
) -> dict[str, Any] | None:
    """Learns from features of the training split and scores those of the evaluation split."""
    train_source = open_source(trained.experiment.data, train=True)
    if train_source.class_names != source.class_names:
        raise ConfigError("the training and the evaluation split have different classes")
    size, features = trained.experiment.eval_batch_size or trained.experiment.batch_size, []
    for part in (train_source, source):
        found: Features | None = extract(trained, part, mesh=mesh, batch_size=size, cache=cache, should_stop=should_stop)
        if found is None:
            return None
        if not len(found.labels):
            raise ConfigError(f"no image of {part.name_of(0) if len(part) else 'the split'} can be used")
        features.append(found)
    return PROBES[protocol](*features, num_classes=len(source.class_names))


def _report(path: RunPath, outcomes: Outcomes | Worst, source: Source, trained: Trained) -> dict[str, Any] | None:
    """Writes the report and returns its entries of the result; None if writing failed."""
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(Mirror(path)).folder if in_bucket(path) else path
            folder.mkdir(exist_ok=True)
            if isinstance(outcomes, Worst):
                return write_worst(folder, outcomes, source, LoadedRun(trained).kinds)
            return write_report(folder, outcomes, source, trained.class_names, decoder(trained.experiment.data))
    except OSError as error:
        logger.error("the report in %s is not written: %s", path, error.strerror or error)
        return None


def _make_mesh(axes: MeshConfig) -> Mesh:
    """The mesh of the training if its axes divide the number of devices here.

    Otherwise each device has all parameters.
    """
    if jax.device_count() % (axes.fsdp * axes.tensor) == 0:
        return make_mesh(fsdp=axes.fsdp, tensor=axes.tensor)
    logger.warning(
        "mesh.fsdp=%d times mesh.tensor=%d does not divide the %d devices here: each has all parameters",
        *(axes.fsdp, axes.tensor, jax.device_count()),
    )
    return make_mesh()


if __name__ == "__main__":
    cli.run(main)

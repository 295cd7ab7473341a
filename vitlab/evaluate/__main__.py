"""Evaluates a model on the evaluation split: python -m vitlab.evaluate --workdir=DIR.

Or a checkpoint of others: --model=NAME --weights=FILE --config=configs/x.py. Prints one JSON object, and writes it to
evaluation.json in the run folder. Exit codes: 0 done; 2 the command, run folder or data cannot be used; 42 stopped by a signal.
"""

import json
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from vitlab import cli
from vitlab.config import ConfigError, Experiment, MeshConfig
from vitlab.data import open_source
from vitlab.evaluate.classification import evaluate, make_eval_step, open_batches
from vitlab.parallel import distributed
from vitlab.parallel.mesh import check_divides, make_mesh
from vitlab.runs import folder
from vitlab.runs.records import write_atomically
from vitlab.runs.trained import Trained, from_run, from_weights
from vitlab.signals import EXIT_STOPPED, StopRequest

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m vitlab.evaluate", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, help="the run folder of a model that was trained here")
    parser.add_argument("--raw", action="store_true", help="of a run that averages its weights, the weights themselves")
    parser.add_argument("--step", type=int, help="of its checkpoints, in checkpoints/; the newest if not given")
    parser.add_argument("--model", help="a model of the zoo")
    parser.add_argument("--weights", help="its checkpoint: .safetensors, .pth or hf://owner/name")
    parser.add_argument("--config", help="config file that names the data; of a run folder, its own if not given")
    distributed.add_arguments(parser)
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    if (args.workdir is None) == (args.model is None) or (args.model is None) != (args.weights is None):
        raise ConfigError("say either --workdir=DIR, or --model=NAME --weights=FILE --config=FILE")
    if args.step is not None and args.workdir is None:
        raise ConfigError("--step is of a run folder: say --workdir=DIR")
    if args.model and not args.config:
        raise ConfigError("--model needs --config=FILE, which names the data")
    cli.begin()
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    experiment = cli.load_experiment(args.config, overrides) if args.config else _own_experiment(args.workdir, overrides)
    with StopRequest() as stop:
        result = _evaluate(args, experiment, stop)
    if result is None:
        return EXIT_STOPPED
    if not distributed.is_first():
        return 0
    text = json.dumps(result)
    print(text)
    if args.workdir:
        try:
            write_atomically(args.workdir / "evaluation.json", text + "\n")
        except OSError as error:
            print(f"evaluation.json is not written: {error}", file=sys.stderr)
    return 0


def _own_experiment(workdir: pathlib.Path, overrides: Mapping[str, str]) -> Experiment:
    experiment, _ = folder.read(workdir)
    return cli.override(experiment, overrides)


def _evaluate(args, experiment: Experiment, stop: StopRequest) -> dict | None:
    mesh = _make_mesh(experiment.mesh)
    size = experiment.eval_batch_size or experiment.batch_size
    check_divides("eval_batch_size", size, mesh)
    source = open_source(experiment.data, train=False)
    trained: Trained
    if args.workdir:
        trained = from_run(args.workdir, mesh, experiment, raw=args.raw, step=args.step)
    else:
        trained = from_weights(args.model, args.weights, experiment, tuple(source.class_names), mesh)
    if trained.class_names != tuple(source.class_names):
        raise ConfigError(f"the model knows {len(trained.class_names)} classes, the data has {len(source.class_names)} others")
    batches = open_batches(trained.model, source, trained.experiment, channels=trained.channels, batch_size=size, mesh=mesh)
    step = make_eval_step(trained.model, mesh)
    result = evaluate(step, trained.weights, batches, mesh=mesh, should_stop=distributed.Vote(lambda: stop.requested))
    return result and {**trained.origin, "split": experiment.data.eval_split, **result}


def _make_mesh(axes: MeshConfig) -> Mesh:
    """The axes that training has, if the devices here are a multiple of them; otherwise each device has all parameters."""
    if jax.device_count() % (axes.fsdp * axes.tensor) == 0:
        return make_mesh(fsdp=axes.fsdp, tensor=axes.tensor)
    logger.warning(
        "mesh.fsdp=%d times mesh.tensor=%d does not divide the %d devices here: each has all parameters",
        *(axes.fsdp, axes.tensor, jax.device_count()),
    )
    return make_mesh()


if __name__ == "__main__":
    cli.run(main)

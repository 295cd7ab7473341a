"""Trains a model: python -m vitlab.train --config=configs/x.py:variant --workdir=DIR.

--config.a.b=VALUE replaces a value of the config. The same command again goes on with the run. Exit
codes: 0 the run is done; 1 it failed; 2 the command, config or data cannot be used, and nothing was
begun; 42 a signal stopped the run, and the last step is saved; 43 the run was stuck, and its
watchdog ended it.
"""

from collections.abc import Sequence

from vitlab import cli
from vitlab.buckets import run_path
from vitlab.config import ConfigError, smoke
from vitlab.data import BadImagesError
from vitlab.parallel import distributed
from vitlab.runs.checkpoint import CheckpointError, NonFiniteError, SaveError
from vitlab.runs.claim import FolderLostError
from vitlab.signals import EXIT_STOPPED, Stopped
from vitlab.tasks import task_of
from vitlab.terminal import say, settle
from vitlab.train.loop import train
from vitlab.train.profile import window_of
from vitlab.train.report import describe
from vitlab.train.weights_and_biases import load_wandb


def main(argv: Sequence[str]) -> int:
    try:
        return _main(argv)
    finally:
        settle()  # messages of a run are not its result: if they cannot be written, only they are lost


def _main(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        prog="python -m vitlab.train",
        description=__doc__.split("\n")[0],
        example="python -m vitlab.train --config=configs/quickstart.py --workdir=runs/quickstart --config.optimizer.peak_lr=1e-3",
        keys=True,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help=cli.CONFIG_HELP)
    parser.add_argument("--workdir", required=True, help="the run folder, DIR, gs://BUCKET/DIR or s3://BUCKET/DIR; made if need be")
    parser.add_argument("--smoke", action="store_true", help="the same experiment shrunk to two steps")
    parser.add_argument("--allow_changes", action="store_true", help="go on with a run whose model, data, seed, ... differ")
    parser.add_argument(
        "--watchdog_seconds", type=float, default=1800.0, help="without a step, after which the run shows its stacks and exits; 0: off"
    )
    parser.add_argument("--profile", metavar="FIRST:COUNT", help="steps to trace into the run folder's profile/, such as 100:5")
    parser.add_argument("--wandb", metavar="PROJECT", help="also send the curves to this project at Weights & Biases (extra wandb)")
    distributed.add_arguments(parser)
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    if not args.workdir:
        raise ConfigError("--workdir is empty: name a folder, or . for this one")
    workdir = run_path(args.workdir)
    experiment, profile = cli.load_experiment(args.config, overrides), window_of(args.profile)
    if args.wandb is not None:
        load_wandb()  # raises at once if wandb is not installed
    cli.begin()
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    try:
        result = train(
            smoke(experiment) if args.smoke else experiment,
            workdir,
            allow_changes=args.allow_changes,
            watchdog_seconds=args.watchdog_seconds,
            profile=profile,
            wandb=args.wandb,
        )
    except Stopped as stopped:
        say(str(stopped), error=True)
        return EXIT_STOPPED
    except (NonFiniteError, CheckpointError, SaveError, BadImagesError, FolderLostError) as error:
        say(f"error: {error}", error=True)
        return cli.EXIT_FAILED
    if not distributed.is_first():
        return 0
    found = {name.removeprefix("eval_"): value for name, value in result.items() if name.startswith("eval_")}
    say(
        f"done: {describe(found, task_of(experiment)[0])} after {result['step']} steps\n"
        f"run folder: {args.workdir}\n"
        f"next: python -m vitlab.evaluate --workdir={args.workdir}\n"
        f"      python -m vitlab.predict --workdir={args.workdir} IMAGE..."
    )
    return 0


if __name__ == "__main__":
    cli.run(main)

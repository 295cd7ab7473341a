"""Runs a grid of configs: python -m vitlab.sweep --config=configs/x.py --workdir=DIR --seeds=3.

--grid.KEY="[VALUE, VALUE]" lists values of a config key, written as in Python, such as
--grid.optimizer.peak_lr="[1e-3, 3e-4]"; --seeds=N is --grid.seed="[0, ..., N - 1]". There is a run
for each combination, one after the other, in a folder DIR/KEY=VALUE,KEY=VALUE; --config.KEY=VALUE
holds for all. Arguments after "--" go to python -m vitlab.train as they are. The same command again
skips the runs that are done, and goes on with the others.

Exit codes: 0 all runs are done; 1 some failed, and the others were still run; 2 the command, the
config or a combination cannot be used, and nothing was begun; 42 a signal stopped the current run,
which is saved; 43 a run was stuck three times.
"""

import argparse
import ast
import dataclasses
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vitlab import cli
from vitlab.buckets import RunPath, in_bucket
from vitlab.config import ConfigError
from vitlab.files import read_json, write_atomically
from vitlab.signals import EXIT_STOPPED, StopRequest
from vitlab.train.watchdog import EXIT_STUCK

_GRID = "--grid."
_TRIES = 3  # attempts at a run that gets stuck each time
_DONE = "sweep.json"  # name of a file {run folder: command} of the runs that are done
_MOST_RUNS = 10_000
_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the sweep."""

    name: str  # name of the run folder
    command: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    args, grid, overrides, rest = _arguments(argv)
    experiment = cli.load_experiment(args.config, overrides)
    jobs = []
    for values in combinations(grid):
        texts = {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}
        cli.override(experiment, texts)  # raises for a combination that is not valid, before any run begins
        jobs.append(_job(args, overrides | texts, list(texts), rest))
    if len({job.name for job in jobs}) < len(jobs):
        raise ConfigError("two combinations have folders of the same name: shorten the values, or make two sweeps of them")
    if args.dry_run:
        print("\n".join(shlex.join(("python", *job.command[1:])) for job in jobs))
        return 0
    try:
        if not in_bucket(args.workdir):
            args.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={args.workdir} cannot be made: {error.strerror}") from error
    return run_all(jobs, args.workdir)


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values; those of the last key vary fastest.

    Raises:
      ConfigError: There are more than 10,000.
    """
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > _MOST_RUNS:
        raise ConfigError(f"the grid has {count} combinations; at most {_MOST_RUNS} are run")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def run_all(jobs: Sequence[Job], workdir: RunPath) -> int:
    """Runs the jobs that are not done yet; returns the exit code of the command."""
    done, failed = _read_done(workdir), []
    with StopRequest() as stop:
        for number, job in enumerate(jobs, 1):
            title = f"run {number} of {len(jobs)}: {job.name}"
            if done.get(job.name) == list(job.command):
                print(f"{title}: done before", flush=True)
                continue
            print(title, flush=True)
            code = _run(job, stop)
            if code == 0:
                done[job.name] = list(job.command)
                write_atomically(workdir / _DONE, json.dumps(done, indent=2) + "\n")
            elif code in (EXIT_STOPPED, EXIT_STUCK):
                print(f"{title}: exit code {code}; the same command again goes on from here", file=sys.stderr)
                return code
            else:
                print(f"{title}: failed with exit code {code}", file=sys.stderr)
                failed.append(job.name)
            if stop.requested:
                return EXIT_STOPPED
    if failed:
        print(f"error: {len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    runs = shlex.join(str(workdir / job.name) for job in jobs) if in_bucket(workdir) else f"{shlex.quote(str(workdir))}/*/"
    print(f"all {len(jobs)} runs are done; next: python -m vitlab.compare {runs}")
    return 0


def _run(job: Job, stop: StopRequest) -> int:
    """Exit code of a run; a run that gets stuck is tried again from its last checkpoint."""
    for _ in range(_TRIES):
        code = _wait(job, stop)
        if code != EXIT_STUCK or stop.requested:
            return code
    return EXIT_STUCK


def _wait(job: Job, stop: StopRequest) -> int:
    # A session of its own keeps Ctrl-C from the run, which would take it for a second signal beside
    # the one that is passed on here.
    process = subprocess.Popen(job.command, start_new_session=True)
    told = False
    while process.poll() is None:
        if stop.requested and not told:
            process.send_signal(signal.SIGTERM)
            told = True
        time.sleep(_POLL_SECONDS)
    return process.returncode


def _job(args: argparse.Namespace, overrides: Mapping[str, str], varied: Sequence[str], rest: Sequence[str]) -> Job:
    name = ",".join(f"{key}={_plain(overrides[key])}" for key in varied)[:200] or "run"
    texts = [f"--config.{key}={text}" for key, text in overrides.items()]
    command = [sys.executable, "-m", "vitlab.train", f"--config={args.config}", f"--workdir={os.path.join(args.workdir, name)}"]
    return Job(name=name, command=(*command, *texts, *rest))


def _plain(text: str) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def _read_done(workdir: RunPath) -> dict[str, list[str]]:
    """The runs that are done; none, if the file is damaged.

    A run that is then started again ends at once, as its checkpoint is the last.
    """
    try:
        read = read_json(workdir / _DONE)
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, list[Any]], dict[str, str], list[str]]:
    own, rest = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    parser = cli.Parser(
        prog="python -m vitlab.sweep",
        description=__doc__,
        example="python -m vitlab.sweep --config=configs/quickstart.py --workdir=runs/seeds --seeds=3",
        keys=True,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help=cli.CONFIG_HELP)
    parser.add_argument("--workdir", type=cli.run_folder, required=True, help="folder of the run folders")
    parser.add_argument("--seeds", type=int, help="runs of each combination, with seeds from 0 on")
    parser.add_argument("--dry_run", action="store_true", help="print the commands only")
    grid: dict[str, list[Any]] = {}
    for argument in [a for a in own if a.startswith(_GRID)]:
        key, equals, text = argument.removeprefix(_GRID).partition("=")
        if not key or not equals:
            raise ConfigError(f'{argument} has no values: write {_GRID}KEY="[value, value]"')
        grid[key] = values_of(key, text)
    others, overrides = cli.split_overrides([a for a in own if not a.startswith(_GRID)])
    args = parser.parse_args(others)
    if args.seeds is not None:
        if args.seeds < 1 or "seed" in grid:
            raise ConfigError(f"--seeds={args.seeds} must be at least 1, and not be given beside --grid.seed")
        grid["seed"] = list(range(args.seeds))
    if not grid:
        raise ConfigError(f'there is nothing to vary: give {_GRID}KEY="[value, value]" or --seeds=N')
    both = sorted(grid.keys() & overrides.keys())
    if both:
        raise ConfigError(f"{both[0]} is given both as --grid.{both[0]} and as --config.{both[0]}")
    return args, grid, overrides, rest


def values_of(key: str, text: str) -> list[Any]:
    """The values of "[1e-3, 3e-4]"; words need no quotes: "[adamw, lion]".

    Raises:
      ConfigError: The text is no list in brackets, is empty, or has a value twice.
    """
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        words = re.fullmatch(r"\s*\[([^\[\](){}'\"]+)\]\s*", text)
        values = [cli.literal(word.strip()) for word in words[1].split(",") if word.strip()] if words else None
    if not isinstance(values, list) or not values:
        raise ConfigError(f'{_GRID}{key}={text} must be a list in brackets, such as "[1e-3, 3e-4]" or "[(0.1, 1), (0.3, 1)]"')
    if len({_plain(value if isinstance(value, str) else repr(value)) for value in values}) < len(values):
        raise ConfigError(f"{_GRID}{key}={text} has two values that are the same in a folder's name")
    return values


if __name__ == "__main__":
    cli.run(main)

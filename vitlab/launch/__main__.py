"""Writes the file that starts a run on a cluster: python -m vitlab.launch --target=slurm ...

Targets: slurm, queued_resources, gke, xpk, skypilot. Nothing is submitted: the command that does is
printed. Every launcher starts the same training command again after the exit codes 42 (a signal
stopped it, and the step is saved) and 43 (it was stuck). Flags of `vitlab.train` follow after `--`.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from vitlab import cli
from vitlab.config import ConfigError, Experiment
from vitlab.files import write_atomically
from vitlab.launch import TARGETS, Job


def main(argv: Sequence[str]) -> int:
    """The command."""
    args, overrides, rest = _arguments(argv)
    experiment, target = cli.load_experiment(args.config, overrides), TARGETS[args.target]
    settings = [f"--config.{key}={text}" for key, text in overrides.items()]
    job = Job(
        command=("python", "-m", "vitlab.train", f"--config={args.config}", f"--workdir={args.workdir}", *settings, *rest),
        name=args.name or _name(args.config),
        **{name: getattr(args, name) for name in _FIELDS},
    )
    text = target.text(job)
    _check(experiment, target.devices(job))
    if args.dry_run:
        print(text, end="")
        return 0
    path = args.output or pathlib.Path(f"{job.name}{pathlib.Path(target.template).suffix}")
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{path} exists, with another text: remove it, or name another file with --output")
    write_atomically(path, text)
    print(f"{path} is written; nothing is started yet\nnext: {target.submit} {path}")
    return 0


_FIELDS = ("accelerator", "nodes", "num_slices", "image", "env", "project", "zone", "cluster", "retries", "spot")


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str], list[str]]:
    own, rest = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    parser = cli.Parser(
        prog="python -m vitlab.launch",
        description=__doc__,
        example="python -m vitlab.launch --target=slurm --config=vitlab:quickstart --workdir=/scratch/run --accelerator=8 --env=venv",
        keys=True,
        allow_abbrev=False,
    )
    parser.add_argument("--target", required=True, choices=list(TARGETS), help="the launcher")
    parser.add_argument("--config", required=True, help=cli.CONFIG_HELP)
    parser.add_argument("--workdir", required=True, help="the run folder, which all hosts see")
    parser.add_argument("--accelerator", required=True, help="TPU slice, such as v5e-16, or GPUs of a node, such as 8 or h100:8")
    parser.add_argument("--name", help="of the job; by default that of the config")
    parser.add_argument("--nodes", type=int, default=1, help="GPU nodes (slurm, skypilot)")
    parser.add_argument("--num_slices", type=int, default=1, help="TPU slices; images are split over them (queued_resources, gke, xpk)")
    parser.add_argument("--image", help="container image with vitlab in it (queued_resources, gke, xpk, skypilot); see the Dockerfile")
    parser.add_argument("--env", help="slurm: folder of a virtual environment; skypilot: what pip installs, such as vitlab[cuda12]")
    parser.add_argument("--project", help="project at Google Cloud (queued_resources, xpk)")
    parser.add_argument("--zone", help="such as us-west4-a (queued_resources, xpk), or gcp/us-west4/us-west4-a (skypilot)")
    parser.add_argument("--cluster", help="Kubernetes cluster (xpk)")
    parser.add_argument("--retries", type=int, default=20, help="starts after the first (all but skypilot, which has no limit)")
    parser.add_argument("--spot", action="store_true", help="cheaper machines, which may be taken away")
    parser.add_argument("--output", type=pathlib.Path, help="file to write")
    parser.add_argument("--dry_run", action="store_true", help="print the file, and write nothing")
    others, overrides = cli.split_overrides(own)
    return parser.parse_args(others), overrides, rest


def _name(config: str) -> str:
    """vit-imagenet-small-patch16 of "configs/vit_imagenet.py:small_patch16"."""
    words = re.findall(r"[a-z0-9]+", config.lower().removeprefix("vitlab:").removeprefix("configs/").replace(".py", ""))
    return "-".join(words)[:40].rstrip("-") or "run"


def _check(experiment: Experiment, devices: int) -> None:
    """Refuses now what every host would refuse later."""
    groups, rest = divmod(devices, experiment.mesh.tensor)
    if rest or experiment.batch_size % groups:
        raise ConfigError(f"batch_size={experiment.batch_size} must be a multiple of the {groups} devices that have different images")


if __name__ == "__main__":
    cli.run(main)

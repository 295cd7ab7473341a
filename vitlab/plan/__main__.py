"""Plans a run on absent hardware: python -m vitlab.plan --config=configs/x.py --topology=v5e:16x16.

The command compiles the real training step: for TPUs (v4, v5e, v5p, v6e, as v5e:16x16) with their
own compiler; for h100xN and cpu with the compiler of this CPU, which gives an estimate. Nothing
runs and nothing is measured. Exit codes: 0 the run fits; 2 the command, config or topology cannot
be used; 3 the run does not fit.

With --profile (v5e) the step is also counted: the compiler's estimate for each operation, by part
of the model and direction.
"""

import contextlib
from collections.abc import Sequence

import jax

from vitlab import cli
from vitlab.config import ConfigError
from vitlab.plan.estimate import make_plan
from vitlab.plan.picture import draw_profile
from vitlab.plan.profile import describe_profile, scheduled, write_csv
from vitlab.plan.program import Data
from vitlab.plan.remedies import try_remedies
from vitlab.plan.text import describe, describe_trial
from vitlab.plan.topology import Topology

EXIT_TOO_LARGE = 3


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        prog="python -m vitlab.plan",
        description=__doc__.split("\n")[0],
        example="python -m vitlab.plan --config=configs/maxvit_imagenet.py:tiny --topology=v5e:4x4",
        keys=True,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help=cli.CONFIG_HELP)
    parser.add_argument("--topology", required=True, help="v5e:16x16, v4:4x4x4, v5p, v6e, h100x8, cpu")
    parser.add_argument("--profile", action="store_true", help="count the step by part of the model, and name its slowest operations")
    parser.add_argument("--profile-csv", metavar="FILE", help="write every counted operation to this file")
    parser.add_argument("--profile-picture", metavar="FILE.png", help="draw the counted step by part of the model and kind of operation")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    topology = Topology.of(args.topology)
    experiment = cli.load_experiment(args.config, overrides)
    cli.begin()
    jax.config.update("jax_platforms", "cpu")  # leaves a local accelerator alone
    data = Data.of(experiment)
    counts = bool(args.profile or args.profile_csv or args.profile_picture)
    if counts and topology.device.cycles_per_second is None:
        raise ConfigError("--profile counts steps on v5e only: the clock of other devices does not follow from what is published")
    with scheduled() if counts else contextlib.nullcontext() as schedules:
        plan = make_plan(experiment, topology, data, schedules=schedules)
    print(describe(plan), flush=True)
    limit = plan.model_flops / (topology.device.flops_per_second or 1)
    if plan.profile:
        print(describe_profile(plan.profile, limit), flush=True)
    if plan.profile and args.profile_csv:
        write_csv(args.profile_csv, plan.profile)
    if plan.profile and args.profile_picture:
        title = f"{plan.model}, {plan.batch_size} images on {topology.name}: counted by the compiler, not measured"
        draw_profile(plan.profile, limit, title).save(args.profile_picture)
    if plan.fits:
        return 0
    found = False
    for trial in try_remedies(experiment, plan, data):
        print(describe_trial(trial), flush=True)
        found = trial.plan.fits
    if not found:
        print("nothing that was tried fits: take more devices for a smaller batch on each, or a device with more memory")
    return EXIT_TOO_LARGE


if __name__ == "__main__":
    cli.run(main)

"""The training step of every ImageNet recipe, counted for one TPU v5e; see README.md. Nothing runs
on a TPU: its compiler is asked.

Run: python experiments/06_counted_steps/run.py [RECIPE ...]
Rows that exist are not counted again. With --table the table is written into README.md.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import jax

from vitlab import cli
from vitlab.config import Experiment
from vitlab.layers import run_blocks
from vitlab.models.registry import model_config
from vitlab.plan.profile import profile, scheduled
from vitlab.plan.program import Data, compile_program
from vitlab.plan.topology import Topology
from vitlab.tasks import build
from vitlab.train.groups import as_trained

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
STEPS, BEFORE, README = HERE / "steps.csv", HERE / "before.csv", HERE / "README.md"
IMAGES = 64  # images per step
STAGE = re.compile(r"\bstage_(\d+)_")
FIELDS = ("recipe", "model", "counted", "part", "direction", "ms", "kernel_ms")
Counts = dict[tuple[str, str], list[float]]  # part and direction -> milliseconds, and those of kernels among them


def recipes() -> list[str]:
    """Every ImageNet recipe; each file's default is its representative variant."""
    return sorted(path.stem for path in CONFIGS.glob("*_imagenet.py"))


def named(recipe: str) -> Experiment:
    """The experiment of "swin_imagenet" or "swin_imagenet:small", with the images of a step."""
    name, _, variant = recipe.partition(":")
    return cli.load_experiment(f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""), {"batch_size": str(IMAGES)})


def shortened(experiment: Experiment, blocks: int) -> Experiment:
    """The experiment with so many blocks in each stage, or in the trunk."""
    config = model_config(experiment.model.name, **experiment.model.fields)
    fields = {key: value for key, value in vars(config).items() if key in ("depth", "depths")}
    short = {key: blocks if isinstance(value, int) else tuple(min(blocks, n) for n in value) for key, value in fields.items()}
    model = dataclasses.replace(experiment.model, fields={**experiment.model.fields, **short})
    return dataclasses.replace(experiment, model=model)


@contextlib.contextmanager
def scopes() -> Iterator[list[int]]:
    """Names the operations of blocks by stage; gives the length of each call of `run_blocks`."""
    lengths: list[int] = []

    def run(blocks, x, **options):
        lengths.append(len(blocks))
        with jax.named_scope(f"stage_{len(lengths) - 1}_"):
            return run_blocks(blocks, x, **options)

    users = [m for name, m in sys.modules.items() if name.startswith("vitlab.models") and getattr(m, "run_blocks", None) is run_blocks]
    for module in users:
        vars(module)["run_blocks"] = run
    try:
        yield lengths
    finally:
        for module in users:
            vars(module)["run_blocks"] = run_blocks


def new_rows(recipe: str, blocks: int | None) -> list[dict[str, object]]:
    """Counts a recipe's step in this process, which must not have compiled for a TPU before.

    Args:
      recipe: Name of a config file, with a variant or without.
      blocks: How many blocks of each stage are compiled; their operations are multiplied by how
        often the stage has them, and the optimizer's by the parameters. None compiles all.
    """
    cli.begin()
    jax.config.update("jax_platforms", "cpu")  # a device that is here is left alone
    experiment, topology = named(recipe), Topology.of("v5e:1x1")
    data = Data.of(experiment)
    compiled = experiment if blocks is None else shortened(experiment, blocks)
    parameters, macs, whole = traced(experiment, data)
    fewer_parameters, _, fewer = traced(compiled, data)
    if len(fewer) != len(whole):
        raise SystemExit(f"{recipe}: with fewer blocks the trunk has other stages; count it with --whole")
    with scopes(), scheduled() as schedules:
        program = compile_program(compiled, data, topology)
        assert program.compiled, "it does not fit into the memory"
        operations = profile(program.compiled.as_text() or "", topology.device, schedules)
    found: Counts = collections.defaultdict(lambda: [0.0, 0.0])
    for each in operations:
        times = parameters / fewer_parameters if each.part == "optimizer" else 1.0
        if found_stage := STAGE.search(each.op_name):
            stage = int(found_stage[1]) % len(whole)  # the step is traced more than once
            times = whole[stage] / fewer[stage]
        own = found[each.part, each.direction]
        own[0] += times * each.milliseconds
        own[1] += times * each.milliseconds if each.kind == "kernel" else 0.0
    found["limit", ""] = [2000 * macs * IMAGES / (topology.device.flops_per_second or 1), 0.0]
    about = {"recipe": recipe, "model": experiment.model.name, "counted": "whole" if fewer == whole else "blocks"}
    return [
        {**about, "part": part, "direction": direction, "ms": round(ms, 4), "kernel_ms": round(kernels, 4)}
        for (part, direction), (ms, kernels) in sorted(found.items(), key=lambda item: -item[1][0])
    ]


def traced(experiment: Experiment, data: Data) -> tuple[int, int, list[int]]:
    """Parameters, multiply-accumulates of training on an image, and blocks of each stage."""
    model, _ = build(experiment, num_classes=data.num_classes, channels=data.channels)
    with scopes() as lengths:
        macs = as_trained(model, experiment.optimizer).count_training_macs()
    return sum(math.prod(x.shape) for x in jax.tree.leaves(model.shapes["params"])), macs, lengths


def append(path: pathlib.Path, found: list[dict[str, object]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(FIELDS)
        writer.writerows([row[key] for key in FIELDS] for row in found)


def rows(path: pathlib.Path = STEPS) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def table() -> str:
    """One row a recipe: before and after, the share of the limit, and the slowest part."""
    before = {row["recipe"]: row["ms"] for row in csv.DictReader(BEFORE.open(newline=""))}
    head = "| recipe | model | before, ms | counted, ms | kernels, ms | limit, ms | share | slowest part | compiled |"
    lines, grouped = [head, "|" + "---|" * 9], collections.defaultdict(list)
    for row in rows():
        grouped[row["recipe"]].append(row)
    for recipe, found in grouped.items():
        (limit,) = (float(row["ms"]) for row in found if row["part"] == "limit")
        own = [row for row in found if row["part"] != "limit"]
        ms, kernels = (sum(float(row[key]) for row in own) for key in ("ms", "kernel_ms"))
        slowest = max(own, key=lambda row: float(row["ms"]))
        part = f"{slowest['part']}, {slowest['direction']}: {float(slowest['ms']) / ms:.0%}"
        cells = [f"`{recipe}`", f"`{own[0]['model']}`", before.get(recipe, "-"), f"{ms:.1f}", f"{kernels:.1f}", f"{limit:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{limit / ms:.0%}", part, own[0]["counted"]]) + " |")
    return "\n".join(lines)


def write_table(script: str, text: str) -> None:
    """Writes a table into README.md, between the marks that name the script which makes it."""
    marks = re.compile(rf"(<!-- python experiments/06_counted_steps/{re.escape(script)} --table -->\n).*?(<!-- end -->)", re.DOTALL)
    README.write_text(marks.sub(lambda match: f"{match[1]}{text}\n{match[2]}", README.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", help="all that are not counted yet, by default")
    parser.add_argument("--table", action="store_true", help="write the table into README.md")
    parser.add_argument("--whole", action="store_true", help="compile all blocks, not one of each stage")
    parser.add_argument("--blocks", type=int, default=1, help="blocks of each stage that are compiled")
    parser.add_argument("--here", action="store_true", help="count one recipe in this process")
    parser.add_argument("--out", type=pathlib.Path, default=STEPS, help="the file of rows, such as before.csv")
    args = parser.parse_args()
    if args.table:
        write_table("run.py", table())
        return
    if args.here:
        found = new_rows(args.recipes[0], None if args.whole else args.blocks)
        append(args.out, found)
        print(args.recipes[0], sum(float(str(row["ms"])) for row in found if row["part"] != "limit"), "ms", flush=True)
        return
    known = {row["recipe"] for row in rows(args.out)}
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    for recipe in args.recipes or recipes():
        if recipe not in known:  # in a process of its own: the compiler is told only once where schedules go
            options = ["--here", "--out", str(args.out), "--blocks", str(args.blocks), *(["--whole"] if args.whole else [])]
            subprocess.run([sys.executable, __file__, recipe, *options], env=environment, check=False)


if __name__ == "__main__":
    main()

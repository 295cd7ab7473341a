"""The training step of every ImageNet recipe, counted for one TPU v5e; see README.md. Nothing runs
on a TPU: its compiler is asked.

Run: python experiments/06_counted_steps/run.py [RECIPE ...]
Rows that exist are not counted again. With --table the table is written into README.md.
"""

import argparse
import collections
import csv
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from vitlab import cli
from vitlab.models.registry import model_config

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
STEPS, BEFORE, README = HERE / "steps.csv", HERE / "before.csv", HERE / "README.md"
IMAGES = 64  # images per step
MARKS = re.compile(r"(<!-- python experiments/06_counted_steps/run.py --table -->\n).*(<!-- end -->)", re.DOTALL)
FIELDS = ("recipe", "model", "counted", "part", "direction", "ms", "kernel_ms")
Counts = dict[tuple[str, str], list[float]]  # part and direction -> milliseconds, and those of kernels among them


def recipes() -> list[str]:
    """Every ImageNet recipe; each file's default is its representative variant."""
    return sorted(path.stem for path in CONFIGS.glob("*_imagenet.py"))


def count(recipe: str, **overrides: int) -> tuple[str, Counts]:
    """The model, and the step's milliseconds by part and direction.

    It is compiled in a process of its own: the compiler writes the schedules of kernels for its
    first program only.
    """
    name, _, variant = recipe.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        config, path = f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""), pathlib.Path(folder) / "operations.csv"
        options = [f"--config={config}", "--topology=v5e:1x1", f"--config.batch_size={IMAGES}", f"--profile-csv={path}"]
        options += [f"--config.model.{key}={value}" for key, value in overrides.items()]
        done = subprocess.run(
            [sys.executable, "-m", "vitlab.plan", *options],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"},
        )
        operations = list(csv.DictReader(path.read_text().splitlines()))
    found: Counts = collections.defaultdict(lambda: [0.0, 0.0])
    for each in operations:
        own, ms = found[each["part"], each["direction"]], float(each["milliseconds"])
        own[0] += ms
        own[1] += ms if each["kind"] == "kernel" else 0.0
    said = re.search(r"products take ([\d.e+-]+) at the peak", done.stdout)
    assert said, done.stdout
    found["limit", ""] = [float(said[1]), 0.0]
    return done.stdout.split(",")[0], found


def count_blocks(recipe: str, depth: int) -> tuple[str, Counts]:
    """The step of a trunk of so many equal blocks, from those of one and of two blocks."""
    (model, one), (_, two) = count(recipe, depth=1), count(recipe, depth=2)
    return model, {key: [a + (depth - 1) * (b - a) for a, b in zip(one[key], two[key], strict=True)] for key in two}


def new_rows(recipe: str) -> list[dict[str, object]]:
    name, _, variant = recipe.partition(":")
    experiment = cli.load_experiment(f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""), {})
    depth = getattr(model_config(experiment.model.name, **experiment.model.fields), "depth", None)
    model, found = count_blocks(recipe, depth) if isinstance(depth, int) else count(recipe)
    about = {"recipe": recipe, "model": model, "counted": "blocks" if isinstance(depth, int) else "whole"}
    return [
        {**about, "part": part, "direction": direction, "ms": round(ms, 4), "kernel_ms": round(kernels, 4)}
        for (part, direction), (ms, kernels) in sorted(found.items(), key=lambda item: -item[1][0])
    ]


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(STEPS.open(newline=""))) if STEPS.exists() else []


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", help="all that are not counted yet, by default")
    parser.add_argument("--table", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    if args.table:
        README.write_text(MARKS.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", README.read_text()))
        return
    known = {row["recipe"] for row in rows()}
    for recipe in args.recipes or [r for r in recipes() if r not in known]:
        found = new_rows(recipe)
        new = not STEPS.exists()
        with STEPS.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(found)
        print(recipe, sum(float(str(row["ms"])) for row in found if row["part"] != "limit"), "ms", flush=True)


if __name__ == "__main__":
    main()

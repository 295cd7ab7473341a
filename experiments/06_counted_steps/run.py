"""The training step of every ImageNet recipe, counted for one TPU v5e; see README.md. Nothing runs on a TPU: its compiler is asked.

Run: python experiments/06_counted_steps/run.py [RECIPE ...]    # goes on where it was stopped: rows that exist are not counted again
     python experiments/06_counted_steps/run.py --table         # writes the table into README.md
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

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
STEPS, BEFORE, README = HERE / "steps.csv", HERE / "before.csv", HERE / "README.md"
IMAGES = 64  # of a step
MARKS = re.compile(r"(<!-- python experiments/06_counted_steps/run.py --table -->\n).*(<!-- end -->)", re.DOTALL)
FIELDS = ("recipe", "model", "part", "direction", "ms", "kernel_ms", "limit_ms")


def recipes() -> list[str]:
    """Every ImageNet recipe; each file's default is its representative variant."""
    return sorted(path.stem for path in CONFIGS.glob("*_imagenet.py"))


def count(recipe: str) -> list[dict[str, object]]:
    """The recipe's step by part and direction, in a process of its own: the compiler writes schedules for its first program only."""
    name, _, variant = recipe.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        config, path = f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""), f"{folder}/operations.csv"
        options = [f"--config={config}", "--topology=v5e:1x1", f"--config.batch_size={IMAGES}", f"--profile-csv={path}"]
        done = subprocess.run(
            [sys.executable, "-m", "vitlab.plan", *options],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"},
        )
        operations = list(csv.DictReader(pathlib.Path(path).open(newline="")))
    said = re.search(r"products take ([\d.e+-]+) at the peak", done.stdout)
    total, kernels = collections.Counter(), collections.Counter()
    for each in operations:
        key, ms = (each["part"], each["direction"]), float(each["milliseconds"])
        total[key] += ms
        kernels[key] += ms if each["kind"] == "kernel" else 0.0
    about = {"recipe": recipe, "model": done.stdout.split(",")[0], "limit_ms": said[1] if said else ""}
    return [
        {**about, "part": part, "direction": direction, "ms": round(ms, 4), "kernel_ms": round(kernels[part, direction], 4)}
        for (part, direction), ms in total.most_common()
    ]


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(STEPS.open(newline=""))) if STEPS.exists() else []


def table() -> str:
    """One row a recipe: before and after, the share of the limit, and the slowest part."""
    before = {row["recipe"]: row["ms"] for row in csv.DictReader(BEFORE.open(newline=""))}
    lines = ["| recipe | model | before, ms | counted, ms | kernels, ms | limit, ms | share | slowest part |", "|" + "---|" * 8]
    grouped = collections.defaultdict(list)
    for row in rows():
        grouped[row["recipe"]].append(row)
    for recipe, own in grouped.items():
        ms, kernels, limit = sum(float(r["ms"]) for r in own), sum(float(r["kernel_ms"]) for r in own), float(own[0]["limit_ms"])
        slowest = max(own, key=lambda row: float(row["ms"]))
        part = f"{slowest['part']}, {slowest['direction']}: {float(slowest['ms']) / ms:.0%}"
        cells = [f"`{recipe}`", f"`{own[0]['model']}`", before.get(recipe, "-"), f"{ms:.1f}", f"{kernels:.1f}", f"{limit:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{limit / ms:.0%}", part]) + " |")
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
        found = count(recipe)
        new = not STEPS.exists()
        with STEPS.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(found)
        print(recipe, sum(float(str(row["ms"])) for row in found), "ms", flush=True)


if __name__ == "__main__":
    main()

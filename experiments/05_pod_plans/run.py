"""Plans every ImageNet recipe for one slice of a TPU pod; see README.md.

Nothing runs on a TPU: the TPU's compiler is asked.

Run: python experiments/05_pod_plans/run.py [RECIPE ...]   # existing rows are not planned again
     python experiments/05_pod_plans/run.py --table        # writes the table into README.md
"""

import argparse
import csv
import pathlib
import re
from typing import Any

import jax

from vitlab import cli
from vitlab.benchmark import append
from vitlab.config import ConfigError
from vitlab.plan.estimate import Plan, make_plan
from vitlab.plan.program import Data
from vitlab.plan.remedies import try_remedies
from vitlab.plan.topology import Topology

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
PLANS, README = HERE / "plans.csv", HERE / "README.md"
TOPOLOGY = "v5e:4x4"
MARKS = re.compile(r"(<!-- python experiments/05_pod_plans/run.py --table -->\n).*(<!-- end -->)", re.DOTALL)


def recipes() -> list[str]:
    """Returns every ImageNet recipe; a file's default is its representative variant."""
    return sorted(path.stem for path in CONFIGS.glob("*_imagenet.py"))


def row(recipe: str, plan: Plan, remedy: str) -> dict[str, Any]:
    seconds = plan.step_seconds
    return {
        "recipe": recipe,
        "model": plan.model,
        "topology": plan.topology.name,
        "batch_size": plan.batch_size,
        "epochs": round(plan.epochs, 2),
        "state_bytes": plan.memory["parameters"] + plan.memory["optimizer"],
        "activation_bytes": plan.memory["activations"],
        "bytes": plan.bytes,
        "fits": plan.fits,
        "remedy": remedy,
        "flops": plan.flops,
        "model_flops": plan.model_flops,
        "bytes_accessed": plan.bytes_accessed,
        "collective_bytes": sum(c.bytes for c in plan.collectives),
        "step_seconds": seconds,
        "hours": None if seconds is None else round(plan.total_steps * seconds / 3600, 2),
        "compile_seconds": round(plan.compile_seconds, 1),
    }


def plan_recipe(recipe: str) -> dict[str, Any]:
    """Returns the recipe's plan, with the first setting that makes it fit if it does not."""
    experiment = cli.load_experiment(str(CONFIGS / f"{recipe}.py"), {})
    data = Data.of(experiment)
    plan, remedy = make_plan(experiment, Topology.of(TOPOLOGY), data), ""
    for trial in () if plan.fits else try_remedies(experiment, plan, data):
        remedy = " ".join(f"{key}={value}" for key, value in trial.overrides.items()) if trial.plan.fits else ""
    return row(recipe, plan, remedy)


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(PLANS.open(newline=""))) if PLANS.exists() else []


def table() -> str:
    head = "| recipe | model | state, GiB | activations, GiB | fits | GFLOP | traffic, GiB | all-reduce, MiB | step, ms | epochs | hours |"
    lines = [head, "|" + "---|" * 11]
    for r in rows():
        gib = {name: float(r[name] or 0) / 2**30 for name in ("state_bytes", "activation_bytes", "bytes_accessed")}
        known = r["step_seconds"] != ""
        cells = [
            f"`{r['recipe']}`",
            f"`{r['model']}`",
            f"{gib['state_bytes']:.2f}",
            f"{gib['activation_bytes']:.2f}",
            "yes" if r["fits"] == "True" else f"no; with {r['remedy']}" if r["remedy"] else "no",
            f"{float(r['flops']) / 1e9:,.0f}" if known else "-",
            f"{gib['bytes_accessed']:.0f}" if known else "-",
            f"{int(r['collective_bytes']) / 2**20:.0f}" if known else "-",
            f"{1000 * float(r['step_seconds']):.0f}" if known else "-",
            r["epochs"],
            r["hours"] or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(recipes())}; all by default")
    parser.add_argument("--table", action="store_true", help="only write the table")
    args = parser.parse_args()
    cli.begin()
    jax.config.update("jax_platforms", "cpu")
    done = {r["recipe"] for r in rows()}
    for recipe in [] if args.table else args.recipes or recipes():
        if recipe in done:
            continue
        try:
            planned = plan_recipe(recipe)
        except ConfigError as error:
            print(f"{recipe}: {error}", flush=True)
            continue
        append(PLANS, planned)
        print(planned, flush=True)
        jax.clear_caches()
    README.write_text(MARKS.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", README.read_text()))


if __name__ == "__main__":
    main()

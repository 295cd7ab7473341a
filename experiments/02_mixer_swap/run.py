"""Trains every mixer of the zoo in all stages of one small trunk, with three seeds; see README.md.

Run: python experiments/02_mixer_swap/run.py            # resumes: existing rows are not run again
     python experiments/02_mixer_swap/run.py --costs    # only costs of a step; on an idle machine
     python experiments/02_mixer_swap/run.py --plugins  # plug-in modules after each block instead
"""

import argparse
import csv
import dataclasses
import itertools
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping

import jax

from vitlab import cli
from vitlab.analysis.counts import count_params
from vitlab.benchmark import append, measure
from vitlab.config import Experiment
from vitlab.layers.plug_ins import PLUG_INS
from vitlab.mixers import MIXERS
from vitlab.models.registry import abstract_model
from vitlab.train.loop import train

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs/metaformer_bundled.py"
RESULTS, COSTS, PLUGINS = HERE / "results.csv", HERE / "costs.csv", HERE / "plugins.csv"
SEEDS = (0, 1, 2)
# Maps have sides of 14, 7 and 4 tokens: small enough for a CPU, and large enough that a window of 7
# does not cover the whole first map.
TRUNK = {"model.depths": "(1, 1, 1)", "model.dims": "(16, 32, 64)", "model.num_heads": "(1, 2, 4)", "model.drop_path_rate": "0.0"}
RECIPE = {"batch_size": "32", "duration": "1 epochs", "optimizer.warmup": "30 steps", "eval_every": "1 epochs"}
COST_BATCH = 64  # images per step when costs are measured


def experiment(mixer: str, seed: int) -> Experiment:
    return cli.load_experiment(str(CONFIG), TRUNK | RECIPE | {"model.mixers": mixer, "seed": str(seed)})


def with_plugin(name: str, seed: int) -> Experiment:
    """The trunk with the mixer that has no weights, and a plug-in after each block; "none" has
    none.
    """
    fields = {} if name == "none" else {"model.plugin": name}
    return cli.override(experiment("pooling", seed), fields)


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def mixer_of(cost_row: Mapping[str, str]) -> str:
    return dict(re.findall(r"(\w+)=(\S+)", cost_row["fields"]))["mixers"]


def cost(mixer: str) -> None:
    """Measures one step of training: parameters, GMACs, speed and memory.

    `python -m vitlab.benchmark` prints the same figures.
    """
    of = cli.override(experiment(mixer, 0), {"model.num_classes": "10", "model.in_channels": "1"})  # classes and channels of the data
    measurement = measure(of.model, batch_size=COST_BATCH, train=True)
    append(COSTS, dataclasses.asdict(measurement))
    print(measurement.line(), flush=True)


def accuracy(mixer: str, seed: int) -> None:
    """Trains and evaluates one mixer with one seed."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        result = train(experiment(mixer, seed), workdir)
    row = {"mixer": mixer, "seed": seed, "top1": round(100 * result["eval_top1"], 2), "loss": round(result["eval_loss"], 4)}
    append(RESULTS, row | {"steps": result["step"], "seconds": round(time.perf_counter() - begin, 1)})


def plugin(name: str, seed: int) -> None:
    """Trains and evaluates one plug-in with one seed."""
    begin, of = time.perf_counter(), with_plugin(name, seed)
    params = count_params(abstract_model(of.model.name, image_size=of.model.image_size, num_classes=10, in_channels=1, **of.model.fields))
    with tempfile.TemporaryDirectory() as workdir:
        result = train(of, workdir)
    row = {
        "plugin": name,
        "seed": seed,
        "params": params,
        "top1": round(100 * result["eval_top1"], 2),
        "loss": round(result["eval_loss"], 4),
    }
    append(PLUGINS, row | {"steps": result["step"], "seconds": round(time.perf_counter() - begin, 1)})
    print(*row.values(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", action="store_true", help="only what a step costs")
    parser.add_argument("--plugins", action="store_true", help="plug-in modules instead of mixers")
    args = parser.parse_args()
    cli.begin()
    if args.plugins:
        done = {(row["plugin"], int(row["seed"])) for row in rows(PLUGINS)}
        for seed, name in itertools.product(SEEDS, ("none", *PLUG_INS)):
            if (name, seed) not in done:
                plugin(name, seed)
                jax.clear_caches()
        return
    known = {mixer_of(row) for row in rows(COSTS)}
    done = {(row["mixer"], int(row["seed"])) for row in rows(RESULTS)}
    for mixer in MIXERS:
        if mixer not in known:
            cost(mixer)
            jax.clear_caches()
    for seed in SEEDS if not args.costs else ():
        for mixer in MIXERS:
            if (mixer, seed) not in done:
                accuracy(mixer, seed)
                jax.clear_caches()


if __name__ == "__main__":
    main()

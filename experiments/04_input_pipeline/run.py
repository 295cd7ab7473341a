"""Measures how fast images reach a training step, beside other pipelines; see README.md.

Run: python experiments/04_input_pipeline/run.py --others=PYTHON [--cifar10=FOLDER]
     python experiments/04_input_pipeline/run.py --table    # writes the tables into README.md

Existing comparisons are not run again. PYTHON is an interpreter that has timm, torchvision,
tensorflow and scikit-image; pipelines of missing packages are left out, with the reason.
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results.csv", HERE / "README.md"
MARKS = re.compile(r"(<!-- python experiments/04_input_pipeline/run.py --table -->\n).*(<!-- end -->)", re.DOTALL)
OURS = "vitlab"
OTHERS = ("timm", "torchvision", "tf.data")  # names of pipelines that run under PYTHON begin with these
WARM_UP = 256  # images made before the clock starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Pipelines that take turns, so that other load of the machine slows all of them alike."""

    pipelines: tuple[str, ...]
    images: int  # images per turn
    rounds: int = 7
    warm_up: int = WARM_UP


COMPARISONS = {
    "decode, crop, flip": Comparison(
        pipelines=(
            *(OURS, "vitlab, decoding alone"),
            *("timm, uint8", "timm, float32", "torchvision, uint8", "torchvision, float32", "tf.data, uint8", "tf.data, float32"),
        ),
        images=512,
    ),
    "with RandAugment": Comparison(pipelines=("vitlab, RandAugment", "timm, RandAugment, uint8"), images=512),
    "loader": Comparison(pipelines=("plain loop", "plain loop, 2 threads", "loader, 2 threads", "loader, 2 workers"), images=2048),
    "first batch": Comparison(pipelines=("first batch",), images=128, warm_up=0),
    "small images": Comparison(pipelines=("bundled", "CIFAR-10"), images=25_600),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on the ratio of two pipelines' CPU times."""

    text: str
    pipeline: str
    against: str
    at_least: float | None = None  # lower bound of the other pipeline's CPU time / ours
    at_most: float | None = None  # upper bound of our CPU time / the other pipeline's


TARGETS = (
    Target(text="over timm's pipeline, float32", pipeline=OURS, against="timm, float32", at_least=2.5),
    Target(text="over timm's pipeline, uint8", pipeline=OURS, against="timm, uint8", at_least=2.5),
    Target(text="over torchvision's `decode_jpeg`, float32", pipeline=OURS, against="torchvision, float32", at_least=1.4),
    Target(text="over torchvision's `decode_jpeg`, uint8", pipeline=OURS, against="torchvision, uint8", at_least=1.4),
    Target(text="over `decode_and_crop_jpeg`, float32", pipeline=OURS, against="tf.data, float32", at_least=2.2),
    Target(text="over `decode_and_crop_jpeg`, uint8", pipeline=OURS, against="tf.data, uint8", at_least=2.2),
    Target(text="RandAugment, over timm's", pipeline="vitlab, RandAugment", against="timm, RandAugment, uint8", at_least=2.5),
    Target(text="loader with 2 threads, of a plain loop on 2", pipeline="loader, 2 threads", against="plain loop, 2 threads", at_most=1.10),
    Target(text="loader with 2 threads, of a plain loop on one", pipeline="loader, 2 threads", against="plain loop", at_most=1.10),
    Target(
        text="loader with 2 worker processes, of a plain loop on 2",
        pipeline="loader, 2 workers",
        against="plain loop, 2 threads",
        at_most=1.25,
    ),
    Target(text="loader with 2 worker processes, of a plain loop on one", pipeline="loader, 2 workers", against="plain loop", at_most=1.25),
)


class Process:
    """A pipeline in its own interpreter; `reason` says why it cannot run, or is empty."""

    def __init__(self, name: str, python: str, folder: str):
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [python, str(HERE / "pipelines.py"), name, folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        begun = self._answer()
        self.reason, self.versions = begun.get("reason", ""), begun.get("versions", "")

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"reason": f"it ended with exit code {self.process.wait()}"}

    def make(self, count: int) -> dict[str, float]:
        print(count, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(name: str, folders: dict[str, str], others: str) -> list[dict[str, Any]]:
    comparison = COMPARISONS[name]
    processes = {
        pipeline: Process(pipeline, others if pipeline.startswith(OTHERS) else sys.executable, folders.get(pipeline, folders[""]))
        for pipeline in comparison.pipelines
    }
    turns: dict[str, list[dict[str, float]]] = {pipeline: [] for pipeline in processes}
    for number in range(comparison.rounds + 1):
        for pipeline, process in processes.items():
            if process.reason or (number == 0 and not comparison.warm_up):
                continue
            turn = process.make(comparison.images if number else comparison.warm_up)
            if number:
                turns[pipeline].append(turn)
    for process in processes.values():
        process.close()
    return [row(name, pipeline, process, turns[pipeline]) for pipeline, process in processes.items()]


def row(comparison: str, pipeline: str, process: Process, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Returns the median CPU and wall time per image, in ms, and the extremes of the CPU time."""
    images = COMPARISONS[comparison].images
    cpu, wall = ([1000 * turn[key] / images for turn in turns] for key in ("cpu", "wall"))
    return {
        "comparison": comparison,
        "pipeline": pipeline,
        "images": images,
        "rounds": len(turns),
        "cpu_ms": f"{statistics.median(cpu):.5f}" if cpu else "",
        "cpu_ms_least": f"{min(cpu):.5f}" if cpu else "",
        "cpu_ms_most": f"{max(cpu):.5f}" if cpu else "",
        "wall_ms": f"{statistics.median(wall):.5f}" if wall else "",
        "reason": process.reason,
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}",
        "versions": f"Python {platform.python_version()}, {process.versions}".rstrip(", "),
    }


def processor() -> str:
    names = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return names[0].strip() if names else platform.processor()


def rows() -> list[dict[str, str]]:
    """Returns the rows of results.csv, in the order of the comparisons."""
    found = list(csv.DictReader(RESULTS.open(newline=""))) if RESULTS.exists() else []
    return sorted(found, key=lambda r: list(COMPARISONS).index(r["comparison"]))


def add(new: list[dict[str, Any]]) -> None:
    begin = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(new[0]), lineterminator="\n")
        if begin:
            writer.writeheader()
        writer.writerows(new)


def table() -> str:
    lines = ["| comparison | pipeline | CPU, ms/image | range | images/s of a core | wall, ms/image |", "|" + "---|" * 6]
    for r in rows():
        if r["reason"]:
            cells = [r["comparison"], r["pipeline"], f"not measured: {r['reason']}", "-", "-", "-"]
        else:
            cpu = float(r["cpu_ms"])
            spread = f"{float(r['cpu_ms_least']):.3g} to {float(r['cpu_ms_most']):.3g}"
            cells = [r["comparison"], r["pipeline"], f"{cpu:.3g}", spread, f"{1000 / cpu:,.0f}", f"{float(r['wall_ms']):.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *targets()])


def targets() -> list[str]:
    measured = {r["pipeline"]: r for r in rows() if not r["reason"]}
    lines = ["| target | wanted | reached |", "|---|---|---|"]
    for target in TARGETS:
        if target.pipeline not in measured or target.against not in measured:
            continue
        ratio = float(measured[target.against]["cpu_ms"]) / float(measured[target.pipeline]["cpu_ms"])
        if target.at_least:
            lines.append(f"| {target.text} | >= {target.at_least} x | {ratio:.2f} x |")
        else:
            lines.append(f"| {target.text} | <= {target.at_most} x | {1 / ratio:.2f} x |")
    if "first batch" in measured:
        r = measured["first batch"]
        seconds = float(r["wall_ms"]) * int(r["images"]) / 1000
        lines.append(f"| first batch of {r['images']} with 2 threads, wall | <= 1 s | {seconds:.2f} s |")
    for name, wanted in (("bundled", 100_000), ("CIFAR-10", 15_000)):
        if name in measured:
            lines.append(f"| {name}, images/s of a core | >= {wanted:,} | {1000 / float(measured[name]['cpu_ms']):,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", default=sys.executable, metavar="PYTHON", help="interpreter that has the packages of others")
    parser.add_argument("--cifar10", metavar="FOLDER", help="holds cifar10_jpeg, prepared by TFDS in array_record")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    args = parser.parse_args()
    done = {r["comparison"] for r in rows()}
    with tempfile.TemporaryDirectory() as photographs:
        wanted = [] if args.table else [name for name in COMPARISONS if name not in done]
        if wanted:
            subprocess.run([args.others, str(HERE / "photographs.py"), photographs], check=True)
        for name in wanted:
            new = measure(name, {"": photographs, "CIFAR-10": args.cifar10 or photographs}, args.others)
            print(*new, sep="\n", flush=True)
            add(new)
    README.write_text(MARKS.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", README.read_text()))


if __name__ == "__main__":
    main()

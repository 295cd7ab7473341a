"""Measures images per second on this CPU, ours against timm's, eager and compiled; see README.md.

Existing rows are not measured again.

Run: pip install -e ".[parity]"
     python experiments/03_against_timm/run.py [--image-size=512] [--modes eval] [MODEL ...]
     python experiments/03_against_timm/run.py --table      # writes the table into README.md
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results.csv", HERE / "README.md"
MARKS = re.compile(r"(<!-- python experiments/03_against_timm/run.py --table -->\n).*?(<!-- end -->)", re.DOTALL)
SYSTEMS, MODES = ("vitlab", "timm", "timm compiled"), ("eval", "train")
BATCH_SIZE, LIMIT = 8, 600  # images; longest time of one measurement, in seconds
TIMM = {  # our name -> timm's
    "vit_tiny_patch16": "vit_tiny_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256": "swinv2_tiny_window8_256",
    "maxvit_tiny": "maxvit_tiny_tf_224",
    "focalnet_tiny_srf": "focalnet_tiny_srf",
    "davit_tiny": "davit_tiny",
    "nextvit_small": "nextvit_small",
    "crossvit_tiny": "crossvit_tiny_240",
    "efficientvit_m0": "efficientvit_m0",
    "shvit_s1": "shvit_s1",
    "mambaout_femto": "mambaout_femto",
    "halonet_h1": "halonet_h1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: a model in one mode by one system."""

    model: str
    system: str
    mode: str
    image_size: int  # pixels per side
    batch_size: int
    compile_seconds: float | None  # time until the first result; None if the measurement failed
    images_per_second: float | None  # from the median time of several runs; None if the measurement failed
    note: str  # reason for a missing figure
    versions: str


def measure_vitlab(model: str, mode: str, image_size: int) -> tuple[float, float, str]:
    """Returns seconds to compile, images per second and versions."""
    from vitlab import cli
    from vitlab.benchmark import measure
    from vitlab.config import ModelConfig

    cli.begin()
    got = measure(ModelConfig(name=model, image_size=image_size), batch_size=BATCH_SIZE, train=mode == "train")
    return got.compile_seconds, got.images_per_second, got.versions


def measure_timm(model: str, mode: str, image_size: int, *, compiled: bool) -> tuple[float, float, str]:
    """Returns seconds to compile, images per second and versions of timm's network.

    A run is logits without gradients, or a step of AdamW on the cross entropy.
    """
    import torch

    _tolerate_torchvision(torch)
    import timm

    from pallas_kernels.benchmark import median_seconds

    network = _at_size(timm, TIMM.get(model, model), image_size)
    images, labels = torch.randn(BATCH_SIZE, 3, image_size, image_size), torch.randint(0, 1000, (BATCH_SIZE,))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    call = torch.compile(network) if compiled else network

    def evaluate() -> None:
        with torch.inference_mode():
            call(images)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(call(images), labels).backward()
        optimizer.step()

    run = train if mode == "train" else evaluate
    network.train(mode == "train")
    begin = time.perf_counter()
    run()
    first = time.perf_counter() - begin
    return first, BATCH_SIZE / median_seconds(run), f"torch {torch.__version__}, timm {timm.__version__}"


def _at_size(timm, name: str, image_size: int):
    if timm.get_pretrained_cfg(name).input_size[-1] != image_size:
        with contextlib.suppress(TypeError):  # networks that accept any size refuse the argument
            return timm.create_model(name, img_size=image_size)
    return timm.create_model(name)


def _tolerate_torchvision(torch) -> None:
    """Ignores operators that torchvision cannot register.

    Some torchvision wheels register operators that a CPU build of torch lacks; timm needs none of
    them.
    """
    register = torch.library.register_fake

    def tolerant(*args, **kwargs):
        def apply(fn):
            with contextlib.suppress(RuntimeError):
                return register(*args, **kwargs)(fn)
            return fn

        return apply

    torch.library.register_fake = tolerant


def one(model: str, system: str, mode: str, image_size: int) -> None:
    """Prints one measurement as JSON; it runs in a process of its own."""
    if system == "vitlab":
        got = measure_vitlab(model, mode, image_size)
    else:
        got = measure_timm(model, mode, image_size, compiled=system == "timm compiled")
    print(json.dumps(got))


def in_a_process(model: str, system: str, mode: str, image_size: int) -> Row:
    """Returns a row; the note says if a measurement failed or took too long."""
    command = [sys.executable, __file__, model, "--image-size", str(image_size), "--one", system, mode]
    seconds, speed, note, versions = None, None, "", ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        if done.returncode:
            note = (done.stderr.strip().splitlines() or ["failed"])[-1][:200]
        else:
            seconds, speed, versions = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        note = f"no result in {LIMIT} s"
    return Row(
        model=model,
        system=system,
        mode=mode,
        image_size=image_size,
        batch_size=BATCH_SIZE,
        compile_seconds=seconds and round(seconds, 1),
        images_per_second=speed and float(f"{speed:.4g}"),
        note=note,
        versions=versions,
    )


def rows() -> dict[tuple[str, str, int, str], dict[str, str]]:
    """Returns (model, mode, image size, system) -> the row of results.csv."""
    found = csv.DictReader(RESULTS.open(newline="")) if RESULTS.exists() else []
    return {(r["model"], r["mode"], int(r["image_size"]), r["system"]): r for r in found}


def speed(row: dict[str, str] | None) -> float | None:
    """Returns images per second, or None if the row has no figure."""
    return float(row["images_per_second"]) if row and row["images_per_second"] else None


def write_table(marks: re.Pattern[str], table: str) -> None:
    """Writes a table between its marks in README.md."""
    README.write_text(marks.sub(lambda match: f"{match[1]}{table}\n{match[2]}", README.read_text()))


def table() -> str:
    found = rows()
    lines = [
        "| model | pixels | mode | vitlab, images/s | timm | timm compiled | ours / the better | compilation, s: ours, theirs |",
        "|" + "---|" * 8,
    ]
    for model, mode, size in dict.fromkeys(key[:3] for key in found if key[0] in TIMM):
        each = [found.get((model, mode, size, system)) for system in SYSTEMS]
        speeds = [speed(row) for row in each]
        theirs = [x for x in speeds[1:] if x]
        ratio = f"{speeds[0] / max(theirs):.2f}" if speeds[0] and theirs else "-"
        compile_seconds = ", ".join((r and r["compile_seconds"]) or "-" for r in (each[0], each[2]))
        cells = [f"`{model}`", str(size), mode, *(f"{x:.3g}" if x else "-" for x in speeds), ratio, compile_seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_missing(wanted: list[tuple[str, str, int, str]]) -> None:
    """Measures and writes those (model, mode, image size, system) that have no row."""
    from vitlab.benchmark import append

    done = rows()
    for model, mode, size, system in wanted:
        if (model, mode, size, system) not in done:
            row = dataclasses.asdict(in_a_process(model, system, mode, size))
            append(RESULTS, row)
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(TIMM)}; all by default")
    parser.add_argument("--image-size", type=int, help="pixels per side; each model's own by default")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "MODE"), help="one measurement, printed as JSON")
    args = parser.parse_args()
    if args.one:
        return one(args.models[0], *args.one, args.image_size)
    from vitlab.models.registry import model_config

    for model in [] if args.table else args.models or TIMM:
        size = args.image_size or model_config(model).image_size[0]
        measure_missing([(model, mode, size, system) for mode in args.modes for system in SYSTEMS])
    write_table(MARKS, table())


if __name__ == "__main__":
    main()

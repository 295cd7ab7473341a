"""Every implementation of each operator side by side, against its roofline.

    python -m pallas_kernels.benchmark [OP ...] [--shapes NAME ...]

prints for every implementation that can run here the median time, its ratio to the fastest and the
fraction of the roofline, and says of the others why not. Where there is no accelerator, the kernels
are compiled for devices that are elsewhere; the figures of their compilers are printed, labelled
"counted" (see pallas_kernels.compile). `--output` adds the lines to a CSV file, with device and
versions.
"""

import csv
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from pallas_kernels.command_line import Parser, near_misses, one_of
from pallas_kernels.compile import DTYPES, TARGETS, Target, compile_all, missing, operators, passes
from pallas_kernels.dispatch import UnsupportedError

MIN_REPEATS, MIN_SECONDS = 5, 0.5  # runs, and seconds of timing; both are reached
CPU_BATCH = 4  # images, where there is no accelerator
MAX_DEFINITION_BYTES = 4 * 2**30  # a definition, which may hold the scores of all pairs of tokens, is not run above it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One implementation on one shape: a line of the table and of the CSV file."""

    op: str
    shape: str
    batch: int
    dtype: str
    pass_: str  # forward or backward
    implementation: str
    device: str
    kind: str  # measured, counted, or why neither
    microseconds: float | None = None  # median; counted: the larger of cycles over the clock and bytes over the bandwidth
    ratio: float | None = None  # to the fastest measured one
    roofline: float | None = None  # least time over this time
    flops: int = 0  # multiply-adds times two that the definition needs
    bytes: int = 0  # traffic with memory that the definition needs
    note: str = ""
    versions: str = ""


def measure(op: str, name: str, dtype: str, batch: int) -> list[Line]:
    """Times all implementations of an operator on one shape, and its opponents, if it has any."""
    package, shape = importlib.import_module(f"pallas_kernels.{op}"), _shapes(op)[name].batched(batch)
    rivals = importlib.util.find_spec(f"pallas_kernels.{op}.opponents")
    opponents = importlib.import_module(f"pallas_kernels.{op}.opponents").OPPONENTS if rivals else {}
    candidates: dict[str, Callable[[str], Callable[[], Any]]] = {
        key: functools.partial(_ours, getattr(package, op), shape, dtype, key) for key in package.IMPLEMENTATIONS
    } | {key: functools.partial(opponent, shape, dtype) for key, opponent in opponents.items()}
    lines = []
    for which in ("forward", "backward"):
        timed = []
        for key, candidate in candidates.items():
            kind, seconds = "measured", None
            try:
                seconds = median_seconds(candidate(which))
            except (UnsupportedError, ImportError) as reason:
                kind = str(reason)
            timed.append(_line(op, name, shape, dtype, which, key, jax.devices()[0].device_kind, kind, seconds))
        lines += _with_ratios(timed)
    return lines


def _ours(op, shape, dtype: str, implementation: str, which: str) -> Callable[[], Any]:
    """One pass, compiled, with its arguments; raises UnsupportedError where it cannot run."""
    if implementation == "reference" and (needed := shape.definition_bytes()) > MAX_DEFINITION_BYTES:
        raise UnsupportedError(f"the definition needs {needed / 2**30:.0f} GiB")
    fn, abstract = passes(op, shape, dtype, implementation)[which]
    compiled = jax.jit(fn).lower(*abstract).compile()
    leaves, tree = jax.tree.flatten(abstract)
    arguments = jax.tree.unflatten(tree, [_random(x, i) for i, x in enumerate(leaves)])
    return lambda: jax.block_until_ready(compiled(*arguments))


def _random(x, seed: int) -> jax.Array:
    if x.dtype == bool:
        return jax.random.bernoulli(jax.random.key(seed), 7 / 8, x.shape)
    return jax.random.normal(jax.random.key(seed), x.shape, x.dtype)


def median_seconds(run: Callable[[], Any]) -> float:
    """Median time of a call, after one that is not counted."""
    run()
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def count(target: str, op: str, names: Sequence[str], dtypes: Sequence[str]) -> Iterator[Line]:
    """Lines with the figures of a compiler for a device that is elsewhere."""
    table = importlib.import_module(f"pallas_kernels.{op}").IMPLEMENTATIONS
    for implementation in (name for name in TARGETS[target].implementations if name in table):
        yield from _count(target, op, implementation, names, dtypes)


def _count(target: str, op: str, implementation: str, names: Sequence[str], dtypes: Sequence[str]) -> Iterator[Line]:
    device = TARGETS[target]
    if reason := missing(target):
        yield Line(op=op, shape="-", batch=0, dtype="-", pass_="-", implementation=implementation, device=target, kind=reason)
        return
    for result in compile_all(target, op, names, dtypes, implementation=implementation):
        shape, which = _shapes(op)[result["shape"]], result["pass"]
        kind, seconds, note = "counted", None, ""
        if "error" in result:
            kind = result["error"]
        elif "ptxas" in result:
            note = "; ".join(f"{x['registers']} registers, {x['spilled_bytes']} bytes spilled" for x in result["ptxas"].values())
        else:
            cycles = sum(result["cycles"].values()) + result["xla_cycles"]
            note = f"{cycles} cycles, {result['temp_bytes']} temporary bytes"
            if device.cycles_per_second:
                moved = shape.bytes(result["dtype"], backward=which == "backward") / device.bytes_per_second
                seconds = max(cycles / device.cycles_per_second, moved)
        yield _line(op, result["shape"], shape, result["dtype"], which, implementation, target, kind, seconds, note)


def _line(op, name, shape, dtype, which, implementation, device: str, kind: str, seconds: float | None, note: str = "") -> Line:
    backward = which == "backward"
    flops, moved = shape.flops(backward=backward), shape.bytes(dtype, backward=backward)
    peak = _peak(device)
    least = max(flops / peak.flops_per_second, moved / peak.bytes_per_second) if peak else None
    return Line(
        op=op,
        shape=name,
        batch=shape.size[0],
        dtype=dtype,
        pass_=which,
        implementation=implementation,
        device=device,
        kind=kind,
        microseconds=None if seconds is None else round(seconds * 1e6, 1),
        roofline=None if seconds is None or least is None else round(least / seconds, 3),
        flops=flops,
        bytes=moved,
        note=note,
        versions=versions(),
    )


def _peak(device: str) -> Target | None:
    """The published peaks of a device, by the name of a target or by its kind."""
    kinds = {"NVIDIA H100 80GB HBM3": "h100", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    return TARGETS.get(kinds.get(device, device))


def _with_ratios(lines: Iterable[Line]) -> list[Line]:
    lines = list(lines)
    times = [line.microseconds for line in lines if line.microseconds]
    return [
        dataclasses.replace(line, ratio=round(line.microseconds / min(times), 2)) if line.microseconds and times else line for line in lines
    ]


def versions() -> str:
    """Versions of Python, JAX and the compilers that are installed."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "torch")
    found = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    return " ".join([f"python {platform.python_version()}", *(f"{name} {found[name]}" for name in names if name in found)])


def _shapes(op: str) -> Mapping[str, Any]:
    return importlib.import_module(f"pallas_kernels.{op}.shapes").MODELS


def table(lines: Sequence[Line]) -> str:
    """Aligned columns for a terminal."""
    rows: list[tuple[str, ...]] = [("op", "shape", "dtype", "pass", "implementation", "device", "us", "ratio", "roofline", "")]
    for line in lines:
        about = line.kind + (f": {line.note}" if line.note else "")
        numbers = ["-" if x is None else f"{x:g}" for x in (line.microseconds, line.ratio, line.roofline)]
        shape = f"{line.shape} x{line.batch}"
        rows.append((line.op, shape, line.dtype, line.pass_, line.implementation, line.device, *numbers, about))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([*(x.ljust(width) for x, width in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows)


def append(path: pathlib.Path, lines: Sequence[Line]) -> None:
    """Adds lines to a CSV file, with a head if it is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name.rstrip("_") for field in dataclasses.fields(Line)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({name.rstrip("_"): x for name, x in dataclasses.asdict(line).items()} for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    known = operators()
    parser = Parser(
        prog="python -m pallas_kernels.benchmark",
        description=__doc__ or "",
        example="python -m pallas_kernels.benchmark window_attention --shapes swin_tiny_stage1 --batch 1",
    )
    parser.add_argument("ops", nargs="*", type=one_of("operator", known), help=f"operators, of {', '.join(known)}; all by default")
    parser.add_argument("--shapes", nargs="+", default=(), help="names in the operator's shapes.MODELS; all by default")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=None, help="bfloat16 by default; float32 where the CPU runs")
    parser.add_argument("--batch", type=int, default=None, help=f"images; by default the model's, on a CPU {CPU_BATCH}")
    parser.add_argument(
        "--targets", nargs="*", default=("v5e", "h100"), choices=TARGETS, help="to count for, where there is no accelerator"
    )
    parser.add_argument("--only", choices=("measured", "counted"), help="leave the other out")
    parser.add_argument("--output", type=pathlib.Path, help="CSV file to add to")
    arguments = parser.parse_args(argv)
    if arguments.batch is not None and arguments.batch < 1:
        parser.error(f"--batch={arguments.batch} must be at least 1")
    on_cpu = jax.default_backend() == "cpu"
    for op in arguments.ops or known:
        for name in arguments.shapes:
            if name not in _shapes(op):
                parser.error(f'{op} has no shape "{name}": {near_misses(name, _shapes(op))}')
    for op in arguments.ops or known:
        shapes = _shapes(op)
        for name in () if arguments.only == "counted" else arguments.shapes or shapes:
            batch = arguments.batch or (min(CPU_BATCH, shapes[name].size[0]) if on_cpu else shapes[name].size[0])
            for dtype in arguments.dtypes or (["float32"] if on_cpu else ["bfloat16"]):
                _report(measure(op, name, dtype, batch), arguments.output)
        for target in arguments.targets if on_cpu and arguments.only != "measured" else ():
            _report(list(count(target, op, arguments.shapes, arguments.dtypes or ["bfloat16"])), arguments.output)
    return 0


def _report(lines: Sequence[Line], output: pathlib.Path | None) -> None:
    if lines:
        print(table(lines), end="\n\n", flush=True)
    if output is not None:
        append(output, lines)


if __name__ == "__main__":
    raise SystemExit(main())

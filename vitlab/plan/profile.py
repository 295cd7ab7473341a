"""The time of each part of a compiled step, as the TPU compiler counts it; nothing is measured.

The compiler writes an estimate in cycles beside each operation of its program. Pallas kernels have
none; their estimate is the largest of three times: the cycles of their schedule, their bytes over
the memory's bandwidth, and their FLOPs, if stated, over the peak. How well the sum predicts a TPU
is not known: copies that overlap with work are not modelled. Two programs compiled alike compare
well.
"""

import contextlib
import csv
import dataclasses
import os
import pathlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pallas_kernels.compile import KERNEL, SCHEDULES, UncountableError, count_bundles
from vitlab.analysis.devices import Device
from vitlab.plan.hlo import Instruction, arrays, instructions
from vitlab.plan.sources import Sources, line_of, part_of

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_FLOPS = re.compile(r'"flops":"?(\d+)')
_CALLS = re.compile(r"calls=%([\w.-]+)")
_NAME = re.compile(r"%([\w.-]+) = ")
_SCHEDULE = re.compile(r"\d+-([\w.]+)-\d+-final_bundles\.txt")
_COLLECTIVE = re.compile(r"all-|reduce-scatter|collective-")


@dataclasses.dataclass(frozen=True)
class Operation:
    """Cost of one operation of a program in a step."""

    milliseconds: float
    part: str  # "attention", "MLP", "norms", "embedding", "head", "loss", "optimizer", "input", "other"
    direction: str  # "forward", "backward", "once a step"
    kind: str  # "product", "sum", "elementwise", "copy", "kernel", "collective"
    name: str  # name in the program
    type: str  # type of the result
    source: str  # file and line of the source
    op_name: str = ""  # JAX's name of the operation, named scopes included


def profile(text: str, device: Device, schedules: str | None) -> list[Operation]:
    """The operations of a compiled program, slowest first.

    Args:
      text: The optimised program.
      device: Device that the program is compiled for, whose clock is known.
      schedules: Folder of the kernels' schedules, see `scheduled`, or None to count kernels by
        bytes and FLOPs.
    """
    assert device.cycles_per_second, "the command refuses devices whose clock is not known"
    sources, program = Sources(text), instructions(text)
    inside = {each.computation: set() for each in program}
    for each in program:
        inside[each.computation].add(each.operation)
    bundles = _bundles(text, schedules) if schedules else {}
    found = []
    for each in program:
        kernel = KERNEL.search(each.line)
        cycles = _CYCLES.search(each.line)
        if each.fused or not (cycles or kernel):
            continue
        name = (_NAME.search(each.line) or ("", ""))[1]
        if kernel:
            seconds = _kernel_seconds(each, _cycles_of(name, kernel[1], bundles), device)
        else:
            assert cycles
            seconds = int(cycles[1]) / device.cycles_per_second
        calls, op_name = sources.calls(each.line), (re.search(r'op_name="([^"]*)"', each.line) or ("", ""))[1]
        direction = "backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else "once a step"
        found.append(
            Operation(
                1000 * seconds * each.times,
                part_of(calls, op_name),
                direction,
                "kernel" if kernel else _kind(each, inside),
                kernel[1] if kernel else name,
                each.type,
                line_of(calls),
                op_name,
            )
        )
    return sorted(found, key=lambda operation: -operation.milliseconds)


def _kernel_seconds(kernel: Instruction, cycles: float, device: Device) -> float:
    assert device.cycles_per_second and device.bytes_per_second and device.flops_per_second
    flops = _FLOPS.search(kernel.line)
    moved = sum(array.bytes for array in arrays(kernel.type, *kernel.operands))
    bounds = [moved / device.bytes_per_second, int(flops[1]) / device.flops_per_second if flops else 0.0]
    return max(cycles / device.cycles_per_second, *bounds)


def _cycles_of(name: str, kernel: str, bundles: Mapping[str, int]) -> float:
    """Cycles of a kernel's schedule, or the mean over other calls of the same kernel.

    The compiler writes one schedule for several equal calls.
    """
    if name in bundles:
        return float(bundles[name])
    others = [cycles for other, cycles in bundles.items() if re.search(rf"{kernel}_*[.\d]*$", other)]
    return sum(others) / len(others) if others else 0.0


def _kind(each: Instruction, inside: dict[str, set[str]]) -> str:
    if _COLLECTIVE.match(each.operation):
        return "collective"
    called = _CALLS.search(each.line)
    operations = inside.get(called[1], set()) if called else {each.operation}
    if operations & {"convolution", "dot"}:
        return "product"
    if operations & {"reduce", "reduce-window"}:
        return "sum"
    moves = {"copy", "transpose", "bitcast", "reshape", "slice", "concatenate", "pad", "parameter", "constant", "tuple", "broadcast"}
    return "copy" if operations <= moves else "elementwise"


@contextlib.contextmanager
def scheduled() -> Iterator[str]:
    """A folder into which the compiler writes the schedules of kernels.

    It must be entered before the process compiles for the first time.
    """
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = f"{before} --xla_jf_dump_to={folder} {SCHEDULES}".strip()
        yield folder


def _bundles(text: str, folder: str) -> dict[str, int]:
    """Cycles of the schedules in a folder, by the name of the operation that calls the kernel."""
    found, kernels = {}, set(KERNEL.findall(text))
    for file in pathlib.Path(folder).glob("*-final_bundles.txt"):
        match = _SCHEDULE.fullmatch(file.name)
        if match and any(kernel in match[1] for kernel in kernels):
            with contextlib.suppress(UncountableError):
                found[match[1]] = count_bundles(file.read_text())
    return found


def describe_profile(operations: Sequence[Operation], limit_seconds: float) -> str:
    """A table by part and direction, a line of kinds, and the ten slowest operations.

    Args:
      operations: The result of `profile`.
      limit_seconds: Time of the step's products at the device's peak.
    """
    total = sum(each.milliseconds for each in operations)
    limit = 1000 * limit_seconds
    share = f"of which the model's products take {limit:.4g} at the peak ({limit / total:.0%})"
    lines = [f"counted step         {total:.4g} ms, {share}; not measured"]
    by_part: dict[tuple[str, str], float] = defaultdict(float)
    by_kind: dict[str, float] = defaultdict(float)
    for each in operations:
        by_part[each.part, each.direction] += each.milliseconds
        by_kind[each.kind] += each.milliseconds
    directions = ("forward", "backward", "once a step")
    lines.append(f"{'part':<20} " + " ".join(f"{d:>12}" for d in (*directions, "share")))
    for part in sorted({part for part, _ in by_part}, key=lambda part: -sum(by_part[part, d] for d in directions)):
        row = [by_part[part, d] for d in directions]
        lines.append(f"{part:<20} " + " ".join(f"{ms:12.3f}" for ms in row) + f" {sum(row) / total:12.1%}")
    lines.append(
        "kinds                " + ", ".join(f"{kind} {ms:.3g} ms" for kind, ms in sorted(by_kind.items(), key=lambda item: -item[1]))
    )
    for each in operations[:10]:
        what = f"{each.kind}, {each.part} {each.direction}"
        lines.append(f"{each.milliseconds:8.3f} ms  {what:<34} {each.source:<40} {each.name} {each.type[:60]}")
    return "\n".join(lines)


def write_csv(path: str, operations: Sequence[Operation]) -> None:
    """Writes a CSV file with a row for each operation."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Operation))
        writer.writerows(dataclasses.astuple(each) for each in operations)

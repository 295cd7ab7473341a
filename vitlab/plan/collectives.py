"""What the devices say to each other, read from a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable

from vitlab.plan.hlo import Instruction, arrays

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# {{0,1},{2,3}} or [2,2]<=[4], or mesh['a'=2,'b'=4] {'b'}.
_GROUP = re.compile(r"replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]|mesh\[(?P<axes>.*?)\].*?\{(?P<named>'.*?)\})")
_AXIS = re.compile(r"'(?P<name>\w+)'(?:=|:\(\d+\))?(?P<size>\d*)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of one kind in a step."""

    kind: str
    count: int
    bytes: int  # of their results, on one device
    sent_bytes: float  # by one device, by rings: a reduction goes round its group of devices twice, all else once


def collectives(program: Iterable[Instruction], num_devices: int) -> tuple[Collective, ...]:
    """Those of a program for so many devices; one inside a loop counts each time."""
    found: dict[str, list[Collective]] = {}
    for each in program:
        kind, start = each.operation.removesuffix("-start"), each.operation.endswith("-start")
        if kind not in _KINDS:
            continue
        sizes = [array.bytes for array in arrays(each.type)]
        if start and kind != "all-reduce":  # (operands, results): half of them, and counters
            sizes = [max(sizes)]
        size = sum(sizes) * each.times
        found.setdefault(kind, []).append(Collective(kind, each.times, size, size * _rounds(kind, each.line, num_devices)))
    return tuple(
        Collective(kind, *(sum(getattr(c, part) for c in each) for part in ("count", "bytes", "sent_bytes")))
        for kind, each in sorted(found.items())
    )


def _rounds(kind: str, line: str, num_devices: int) -> float:
    """Times that a device sends what is as large as the result, in its group of devices."""
    size = _group_size(line) or num_devices
    share = (size - 1) / size
    return {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": size - 1.0, "all-to-all": share}.get(kind, 1.0)


def _group_size(line: str) -> int | None:
    """Devices that talk to each other in an operation; None where it does not say."""
    group = _GROUP.search(line)
    if group is None:
        return None
    if group["named"]:
        sizes = {axis["name"]: axis["size"] for axis in _AXIS.finditer(group["axes"])}
        return math.prod(int(axis["size"] or sizes[axis["name"]]) for axis in _AXIS.finditer(group["named"]))
    return int(group["size"] or len(group["first"].split(",")))

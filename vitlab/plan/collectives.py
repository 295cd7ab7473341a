"""Communication between the devices, read from a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable

from vitlab.plan.hlo import Instruction, arrays

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Forms of replica groups: {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=4] {'b'}.
_GROUP = re.compile(r"replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]|mesh\[(?P<axes>.*?)\].*?\{(?P<named>'.*?)\})")
_AXIS = re.compile(r"'(?P<name>\w+)'(?:=|:\(\d+\))?(?P<size>\d*)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All communication operations of one kind in a step."""

    kind: str
    count: int
    bytes: int  # size of the operations' results on one device
    sent_bytes: float  # bytes that a device sends by ring algorithms: a reduction goes round its group twice, others once


def collectives(program: Iterable[Instruction], num_devices: int) -> tuple[Collective, ...]:
    """The collectives of a program for so many devices; those in a loop count once a trip."""
    found: dict[str, list[Collective]] = {}
    for each in program:
        kind, start = each.operation.removesuffix("-start"), each.operation.endswith("-start")
        if kind not in _KINDS:
            continue
        sizes = [array.bytes for array in arrays(each.type)]
        if start and kind != "all-reduce":  # the type is (operands, results), with counters; results alone count
            sizes = [max(sizes)]
        size = sum(sizes) * each.times
        found.setdefault(kind, []).append(Collective(kind, each.times, size, size * _rounds(kind, each.line, num_devices)))
    return tuple(
        Collective(kind, *(sum(getattr(c, part) for c in each) for part in ("count", "bytes", "sent_bytes")))
        for kind, each in sorted(found.items())
    )


def _rounds(kind: str, line: str, num_devices: int) -> float:
    """Bytes that a device sends within its group, as a multiple of the result's size."""
    size = _group_size(line) or num_devices
    share = (size - 1) / size
    return {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": size - 1.0, "all-to-all": share}.get(kind, 1.0)


def _group_size(line: str) -> int | None:
    """Number of devices in a group of an operation; None where its text does not say."""
    group = _GROUP.search(line)
    if group is None:
        return None
    if group["named"]:
        sizes = {axis["name"]: axis["size"] for axis in _AXIS.finditer(group["axes"])}
        return math.prod(int(axis["size"] or sizes[axis["name"]]) for axis in _AXIS.finditer(group["named"]))
    return int(group["size"] or len(group["first"].split(",")))

"""What the devices say to each other, read from a compiled program."""

import dataclasses
from collections.abc import Iterable

from vitlab.plan.hlo import Instruction, array_bytes, arrays

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of one kind in a step."""

    kind: str
    count: int
    bytes: int  # of their results, on one device


def collectives(program: Iterable[Instruction]) -> tuple[Collective, ...]:
    """Those of a program; one inside a loop counts each time."""
    found: dict[str, list[int]] = {}
    for each in program:
        kind, start = each.operation.removesuffix("-start"), each.operation.endswith("-start")
        if kind not in _KINDS:
            continue
        sizes = [array_bytes(array) for array in arrays(each.type)]
        if start and kind != "all-reduce":  # (operands, results): half of them, and counters
            sizes = [max(sizes)]
        found.setdefault(kind, []).extend([sum(sizes)] * each.times)
    return tuple(Collective(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def sent_bytes(found: tuple[Collective, ...], num_devices: int) -> float:
    """What each device sends, by rings: a reduction goes round twice, all else once."""
    share = (num_devices - 1) / num_devices
    times = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": num_devices - 1, "all-to-all": share}
    return sum((c.bytes * times.get(c.kind, 1) for c in found), 0.0)

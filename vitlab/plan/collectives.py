"""What the devices say to each other, read from a compiled program."""

import dataclasses
import math
import re

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\]")
_LAYOUT = re.compile(r"\{[^{}]*\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of one kind in a step."""

    kind: str
    count: int
    bytes: int  # of their results, on one device


def collectives(program: str) -> tuple[Collective, ...]:
    """Those of an optimized HLO program; one inside a loop counts once."""
    found: dict[str, list[int]] = {}
    for line in program.splitlines():
        if match := _OPERATION.search(_LAYOUT.sub("", line)):
            sizes = [_bytes(array) for array in _ARRAY.finditer(match["type"])]
            if match["start"] and match["kind"] != "all-reduce":  # (operands, results): half of them, and counters
                sizes = [max(sizes)]
            found.setdefault(match["kind"], []).append(sum(sizes))
    return tuple(Collective(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def sent_bytes(found: tuple[Collective, ...], num_devices: int) -> float:
    """What each device sends, by rings: a reduction goes round twice, all else once."""
    share = (num_devices - 1) / num_devices
    times = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": num_devices - 1, "all-to-all": share}
    return sum((c.bytes * times.get(c.kind, 1) for c in found), 0.0)


def _bytes(array: re.Match[str]) -> int:
    bits = 8 if array["dtype"] == "pred" else int(re.findall(r"\d+", array["dtype"])[0])
    return math.prod(map(int, filter(None, array["shape"].split(",")))) * bits // 8

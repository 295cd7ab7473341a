"""An optimized HLO program, read from its text: its instructions, and how often each runs.

XLA's own counts take an instruction inside a loop once.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_INSTRUCTION = re.compile(r" +(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>.+?) (?P<operation>[a-z][\w-]*)\((?P<operands>.*?)\)")
_CALLED = re.compile(r"\b(?P<role>body|calls|to_apply|\w+_computations?)=\{?(?P<names>%[\w.-]+(?:, %[\w.-]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"s32\[\] constant\((\d+)\)")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\]")
_STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation of a program."""

    operation: str  # name of the operation: "fusion", "all-reduce-start"
    type: str  # type of the result, without layouts: "f32[8,2]", "(f32[4], s32[])"
    operands: tuple[str, ...]  # types of the operands
    line: str  # the instruction's whole text
    times: int = 1  # number of runs in a step
    loop: int = 1  # number of trips of the loop around it
    fused: bool = False  # whether it is a part of a fusion
    computation: str = ""  # name of the computation that holds it

    @property
    def moved_bytes(self) -> float:
        """Bytes that it reads and writes each time.

        An array with a row for each trip of the loop around it counts with one row.
        """
        if self.fused or self.operation in _STILL or self.operation.endswith("-done"):
            return 0.0
        found = arrays(self.type, *self.operands)
        return sum((array.bytes / (self.loop if array.rows == self.loop else 1) for array in found), 0.0)


def instructions(program: str) -> list[Instruction]:
    """All instructions of a program; a loop counts once if the text does not tell its trips."""
    computations: dict[str, list[str]] = {"": []}
    lines = computations[""]
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match["name"], [])
        else:
            lines.append(line)
    runs = {name: (1, 1, False) for name in computations}  # computation -> (times, loop, fused)
    found: list[Instruction] = []
    for name in reversed(computations):  # a caller stands after its callees
        times, loop, fused = runs[name]
        types: dict[str, str] = {}
        for line in computations[name]:
            if not (match := _INSTRUCTION.match(_LAYOUT.sub("", line))):
                continue
            types[match["name"]] = match["type"]
            operands = tuple(types.get(operand, "") for operand in re.findall(r"%([\w.-]+)", match["operands"]))
            found.append(Instruction(match["operation"], match["type"], operands, line, times, loop, fused, name))
            for called in _CALLED.finditer(line):
                trips = _trips(line, computations) if called["role"] == "body" else 1
                inner = fused or (called["role"] == "to_apply" and match["operation"] != "call") or match["operation"] == "fusion"
                for callee in re.findall(r"%([\w.-]+)", called["names"]):
                    runs[callee] = (times * trips, trips if called["role"] == "body" else loop, inner)
    return found


def repeated_bytes(program: Iterable[Instruction]) -> float:
    """Bytes that instructions in loops move after the first trip."""
    return sum(((each.times - 1) * each.moved_bytes for each in program), 0.0)


class ArrayType(NamedTuple):
    """An array within the type of an instruction."""

    bytes: int
    rows: int  # size of the first dimension; 0 for a scalar


def arrays(*types: str) -> list[ArrayType]:
    """The arrays of types such as `bf16[8,2]`, with tuples taken apart."""
    found = []
    for match in (match for text in types for match in _ARRAY.finditer(text)):
        shape = [int(n) for n in match["shape"].split(",") if n]
        bits = 8 if match["dtype"] == "pred" else int(re.findall(r"\d+", match["dtype"])[0])
        found.append(ArrayType(math.prod(shape) * bits // 8, shape[0] if shape else 0))
    return found


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Number of trips of a `while`, which XLA states for CPUs.

    For others it is the limit that the loop's condition compares with, if there is only one.
    """
    if match := _TRIPS.search(line):
        return int(match[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    limits = _LIMIT.findall(_LAYOUT.sub("", "\n".join(computations[condition[1]]))) if condition else []
    return int(limits[0]) if len(limits) == 1 else 1

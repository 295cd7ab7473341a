"""A plan: the memory that a compiled step takes of each device, and least times of step and run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from vitlab.config import Experiment
from vitlab.plan import hlo
from vitlab.plan.collectives import Collective, collectives
from vitlab.plan.profile import Operation, profile
from vitlab.plan.program import Data, Program, compile_program
from vitlab.plan.topology import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Figures of one device and one step, unless said otherwise; nothing is measured."""

    model: str
    topology: Topology
    batch_size: int  # number of images over all devices
    compile_seconds: float
    memory: dict[str, int]  # part -> bytes; the parts add up to the total
    model_flops: float  # FLOPs that the mathematics needs: forward and backward pass, and a teacher's forward pass
    flops: float | None  # the larger of two counts, the compiler's and the tracing's; includes recomputation, not kernels
    bytes_accessed: float | None  # memory traffic as the compiler counts it, with every trip of loops
    collectives: tuple[Collective, ...]
    total_steps: int
    epochs: float
    examples: int  # number of images of an epoch
    profile: Sequence[Operation] | None = None  # the counted operations of a step, if a profile was asked for

    @property
    def bytes(self) -> int:
        """Memory that the step needs on a device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a device has that much memory."""
        return self.flops is not None and self.bytes <= self.topology.device.memory_bytes

    @property
    def bounds(self) -> dict[str, float]:
        """Least seconds of a step by each resource that bounds it; empty without known peaks."""
        device = self.topology.device
        if self.flops is None or self.bytes_accessed is None or device.flops_per_second is None:
            return {}
        assert device.bytes_per_second and device.link_bytes_per_second
        return {
            "compute": max(self.flops, self.model_flops) / device.flops_per_second,
            "memory": self.bytes_accessed / device.bytes_per_second,
            "links": sum(c.sent_bytes for c in self.collectives) / device.link_bytes_per_second,
        }

    @property
    def step_seconds(self) -> float | None:
        """Least seconds of a step by the roofline: the largest of the bounds."""
        return max(self.bounds.values(), default=None)


def make_plan(experiment: Experiment, topology: Topology, data: Data, *, schedules: str | None = None) -> Plan:
    """Compiles the step and reads its figures.

    Args:
      experiment: The run.
      topology: The devices.
      data: Facts about the training split.
      schedules: Folder of `vitlab.plan.profile.scheduled`, to count each operation; None for no
        profile.

    Raises:
      ConfigError: The experiment cannot be trained on this topology.
    """
    program = compile_program(experiment, data, topology)
    cost = _cost(program.compiled)
    printed = (program.compiled.as_text() or "") if program.compiled else ""
    text = hlo.instructions(printed)
    return Plan(
        model=experiment.model.name,
        topology=topology,
        batch_size=experiment.batch_size,
        compile_seconds=program.compile_seconds,
        memory=_memory(program),
        model_flops=2 * (program.macs + program.teacher_macs) * experiment.batch_size / topology.count,
        flops=max(cost["flops"], 2 * program.step_macs / topology.count) if "flops" in cost else None,
        bytes_accessed=cost["bytes accessed"] + hlo.repeated_bytes(text) if "bytes accessed" in cost else None,
        collectives=collectives(text, topology.count),
        total_steps=program.periods.total,
        epochs=program.periods.total * experiment.batch_size / data.examples,
        examples=data.examples,
        profile=profile(printed, topology.device, schedules) if schedules and program.compiled else None,
    )


def _cost(compiled: jax.stages.Compiled | None) -> dict[str, float]:
    cost = compiled.cost_analysis() if compiled else {}
    return cost if isinstance(cost, dict) else {}


def _memory(program: Program) -> dict[str, int]:
    """The parts of a device's memory.

    Arrays in the compiler's layout may be larger than their elements; the rest is "padding".
    """
    weights = {k: program.state[k] for k in ("params", "model_state", "average") if k in program.state}
    parts = {"parameters": _bytes(weights), "optimizer": _bytes(program.state["opt_state"]), "batch": _bytes(program.batch)}
    if program.teacher is not None:
        parts["teacher"] = _bytes(program.teacher)
    if program.compiled is None:
        assert program.temporary_bytes is not None
        return {**parts, "activations": program.temporary_bytes}
    stats = program.compiled.memory_analysis()
    rest = stats.argument_size_in_bytes - sum(parts.values())
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        **parts,
        "padding": max(0, rest),
        "activations": stats.temp_size_in_bytes + results,
        "program": stats.generated_code_size_in_bytes,
    }


def _bytes(tree: Any) -> int:
    """Bytes of a tree's arrays on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)

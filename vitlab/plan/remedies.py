"""Which settings would make a run fit, tried by compiling them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from vitlab import cli
from vitlab.config import Experiment
from vitlab.models.registry import model_config
from vitlab.plan.estimate import Plan, make_plan
from vitlab.plan.program import Data

MAX_PARTS = 3  # numbers of parts of a batch that are tried, each twice the one before


@dataclasses.dataclass(frozen=True)
class Trial:
    """Overrides of the config and the plan with them."""

    overrides: Mapping[str, str]
    plan: Plan


def try_remedies(experiment: Experiment, plan: Plan, data: Data) -> Iterator[Trial]:
    """Compiles one setting on top of the other, and ends with the first that fits; none changes what is trained.

    Recomputation of the blocks; where the state alone is too large, its split over all devices; a batch in parts. Not `mesh.tensor`:
    it splits no more of the state than `mesh.fsdp`, and of the activations what parts of a batch save without communication.
    """
    chosen: dict[str, str] = {}
    groups = plan.topology.count // experiment.mesh.tensor  # of devices with the same images

    def trial(overrides: Mapping[str, str]) -> Trial:
        return Trial(overrides, make_plan(cli.override(experiment, overrides), plan.topology, data))

    if _can_recompute(experiment):
        yield (last := trial({"model.remat": "full"}))
        if last.plan.bytes < plan.bytes:
            plan, chosen = last.plan, dict(last.overrides)
    if not plan.fits and room(plan) <= 0 and experiment.mesh.fsdp < groups:
        yield (last := trial({**chosen, "mesh.fsdp": str(groups)}))
        plan, chosen = last.plan, dict(last.overrides)
    for parts in () if plan.fits else numbers_of_parts(plan, groups):
        yield (last := trial({**chosen, "accumulation": str(parts * experiment.accumulation)}))
        if last.plan.fits:
            return


def room(plan: Plan) -> int:
    """Bytes of a device that what does not grow with the batch leaves."""
    return round(plan.topology.device.memory_bytes) - sum(size for part, size in plan.memory.items() if part != "activations")


def numbers_of_parts(plan: Plan, groups: int) -> list[int]:
    """At most MAX_PARTS powers of two, from where the activations, in proportion, would fit; parts that so many groups divide."""
    if room(plan) <= 0:
        return []
    first = max(1, math.ceil(math.log2(plan.memory["activations"] / room(plan))))
    return [2**n for n in range(first, first + MAX_PARTS) if plan.batch_size % (2**n * groups) == 0]


def _can_recompute(experiment: Experiment) -> bool:
    """Whether the model can recompute more of its blocks than it does."""
    return model_config(experiment.model.name, **experiment.model.fields).remat != "full"

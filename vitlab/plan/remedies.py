"""Settings that make a run fit the memory, tried by compiling them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from vitlab import cli
from vitlab.config import Experiment
from vitlab.models.registry import model_config
from vitlab.plan.estimate import Plan, make_plan
from vitlab.plan.program import Data

MAX_PARTS = 3  # most numbers of parts of a batch that are tried, each twice the one before


@dataclasses.dataclass(frozen=True)
class Trial:
    """Overrides of the config, and the plan with them."""

    overrides: Mapping[str, str]
    plan: Plan


def try_remedies(experiment: Experiment, plan: Plan, data: Data) -> Iterator[Trial]:
    """Compiles one setting on top of the other, and ends with the first that fits.

    No setting changes what is trained. In order: recomputation of the blocks; if the state alone is
    too large, splitting it over all devices; the batch in parts. `mesh.tensor` is not tried: it
    splits no more of the state than `mesh.fsdp`, and parts of a batch save as much of the
    activations without communication.
    """
    chosen: dict[str, str] = {}
    groups = plan.topology.count // experiment.mesh.tensor  # number of groups of devices that share their images

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
    """Bytes of a device that remain for activations, the part that grows with the batch."""
    return round(plan.topology.device.memory_bytes) - sum(size for part, size in plan.memory.items() if part != "activations")


def numbers_of_parts(plan: Plan, groups: int) -> list[int]:
    """Numbers of parts of a batch to try: at most MAX_PARTS powers of two.

    The first is the least for which activations in proportion would fit. Each part can be split
    over `groups`.
    """
    if room(plan) <= 0:
        return []
    first = max(1, math.ceil(math.log2(plan.memory["activations"] / room(plan))))
    return [2**n for n in range(first, first + MAX_PARTS) if plan.batch_size % (2**n * groups) == 0]


def _can_recompute(experiment: Experiment) -> bool:
    """Whether the model can recompute more of its blocks than it does now."""
    return model_config(experiment.model.name, **experiment.model.fields).remat != "full"

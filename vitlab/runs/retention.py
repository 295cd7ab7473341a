"""The rule for the checkpoints that a run keeps: the newest, the best, and periodic ones."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Numbers of checkpoints to keep."""

    newest: int = 1  # number of the newest; at least 1, so that the newest is never lost
    best: int = 0  # number of the best, among checkpoints with a score
    every: int | None = None  # steps; the first saved checkpoint of every such period is kept; None: no periodic ones

    def kept(self, steps: Iterable[int], scores: Mapping[int, float]) -> set[int]:
        """The steps to keep; of equal scores the earlier is better; a non-finite one is none."""
        ordered = sorted(steps)
        scored = [s for s in ordered if math.isfinite(scores.get(s, math.nan))]
        kept = {*ordered[-self.newest :], *sorted(scored, key=lambda s: (-scores[s], s))[: self.best]}
        if self.every is not None:
            first = {step // self.every: step for step in reversed(ordered) if step >= self.every}
            kept |= set(first.values())
        return kept


class Preservation:
    """`Retention` as a `PreservationPolicy` of Orbax."""

    def __init__(self, retention: Retention):
        """`scores` (step -> score, higher is better) is set before each save."""
        self.retention, self.scores = retention, {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether each checkpoint is kept."""
        kept = self.retention.kept((c.step for c in checkpoints), self.scores)
        return [c.step in kept for c in checkpoints]

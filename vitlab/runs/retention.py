"""Which checkpoints of a run are kept: the newest, the best, and one every so often."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """The rule."""

    newest: int = 1  # at least 1, so that the newest is never lost
    best: int = 0  # of those that have a score
    every: int | None = None  # steps: of each such stretch the first that was saved; None: no more

    def kept(self, steps: Iterable[int], scores: Mapping[int, float]) -> set[int]:
        """The steps to keep; of equal scores the earlier is better, and what is not finite is no score."""
        ordered = sorted(steps)
        scored = [s for s in ordered if math.isfinite(scores.get(s, math.nan))]
        kept = {*ordered[-self.newest :], *sorted(scored, key=lambda s: (-scores[s], s))[: self.best]}
        if self.every is not None:
            first = {step // self.every: step for step in reversed(ordered) if step >= self.every}
            kept |= set(first.values())
        return kept


class Preservation:
    """`Retention` as Orbax asks for it (its `PreservationPolicy`)."""

    def __init__(self, retention: Retention):
        """`scores` is to be set before each save."""
        self.retention, self.scores = retention, {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer a checkpoint."""
        kept = self.retention.kept((c.step for c in checkpoints), self.scores)
        return [c.step in kept for c in checkpoints]

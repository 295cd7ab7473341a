"""Shares of a run's time: the share that is spent in steps, and the seconds of other parts."""

import contextlib
import time
from collections.abc import Iterator

PARTS: tuple[str, ...] = ("setup", "restore", "compile", "evaluate", "save", "wait")  # "wait" is for images


class Goodput:
    """Adds up the seconds of the parts of one start of a run; what is in no part is in steps."""

    def __init__(self):
        """Begins to count."""
        self._begin, self._seconds = time.perf_counter(), {part: 0.0 for part in PARTS}

    @contextlib.contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Counts the time inside it as that of a part, which is a name of PARTS."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - begin)

    def add(self, part: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        self._seconds[part] += seconds

    def summary(self) -> dict[str, float]:
        """The share of the time that was spent in steps, "goodput", and seconds of each part."""
        total = max(time.perf_counter() - self._begin, 1e-9)
        steps = max(total - sum(self._seconds.values()), 0.0)
        parts = {f"{part}_seconds": round(seconds, 3) for part, seconds in {"step": steps, **self._seconds}.items()}
        return {"goodput": steps / total, **parts}


def goodput_text(summary: dict[str, float]) -> str:
    """A summary as one line: steps and every part that took at least a thousandth of the time."""
    names = ("step", *PARTS)
    total = max(sum(summary[f"{name}_seconds"] for name in names), 1e-9)
    shares = {name: summary[f"{name}_seconds"] / total for name in names}
    shown = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if name != "step" and share >= 0.001)
    return f"{summary['goodput']:.1%} of {total:.0f} s in steps" + (f"; {shown}" if shown else "")

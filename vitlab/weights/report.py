"""The report of a load: every tensor, and by which rules it was placed."""

import dataclasses
from collections.abc import Mapping

_SHOWN = 10  # names of a kind in the text of a report


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The fate of every tensor. Names are this project's; `unexpected` and `ignored` have the checkpoint's."""

    source: str = ""  # file name, and the entry of the file that was taken
    other_entries: tuple[str, ...] = ()  # further entries of the file that hold weights, such as those not averaged
    name_map: str = ""  # project whose names the checkpoint has
    prefixes: tuple[str, ...] = ()  # parts that wrappers had put before the checkpoint's names, removed
    loaded: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()  # position embeddings, bias tables and filters of another grid
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)  # rule by which each of `resampled` was resampled
    zeros: tuple[str, ...] = ()  # biases that the checkpoint's network does not have, set to zero
    missing: tuple[str, ...] = ()  # left as initialised
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()  # "name: reason"; left as initialised
    nonfinite: tuple[str, ...] = ()  # loaded or resampled tensors with NaN or infinity
    new_head: tuple[str, ...] = ()  # left as initialised, as was asked for
    new_plugin: tuple[str, ...] = ()  # plug-ins, which the checkpoint's network does not have; left as initialised
    ignored: tuple[str, ...] = ()  # buffers that follow from the architecture, and the tensors of a head that begins anew

    @property
    def misfits(self) -> tuple[str, ...]:
        """Everything that a strict load refuses, a line each."""
        return (*self.missing, *self.unexpected, *self.mismatched, *(f"{name}: not finite" for name in self.nonfinite))

    def __str__(self) -> str:
        kinds = ("loaded", "resampled", "zeros", "missing", "unexpected", "mismatched", "nonfinite", "new_head", "new_plugin", "ignored")
        lines = [", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds)]
        if self.source:
            others = f"; it also has {', '.join(self.other_entries)}, named as file#entry" if self.other_entries else ""
            lines.append(f"  source: {self.source}{others}")
        lines += [f"  names: those of {self.name_map}"] * bool(self.name_map)
        lines += [f"  prefixes removed: {' '.join(self.prefixes)}"] * bool(self.prefixes)
        for kind in kinds[1:-1]:
            names = [f"{name}: {self.rules[name]}" if name in self.rules else name for name in getattr(self, kind)]
            lines += [f"  {kind}: {name}" for name in names[:_SHOWN]]
            lines += [f"  {kind}: and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
        return "\n".join(lines)


class WeightsMismatchError(ValueError):
    """The checkpoint and the model do not fit; the message is the load report, which `report` holds."""

    def __init__(self, report: LoadReport):
        super().__init__(f"the checkpoint does not fit the model: {report}")
        self.report = report

"""The report of a load: the fate of every tensor, and the rules that placed it."""

import dataclasses
from collections.abc import Mapping

_SHOWN = 10  # number of names of each kind in the text of a report


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The fate of every tensor.

    Names are the model's; `unexpected` and `ignored` have the checkpoint's names.
    """

    source: str = ""  # file name, and the entry of the file
    other_entries: tuple[str, ...] = ()  # other entries of the file with weights, such as raw ones beside an average
    name_map: str = ""  # source whose names the checkpoint uses, such as "timm"
    prefixes: tuple[str, ...] = ()  # prefixes of wrappers that were removed from the checkpoint's names
    loaded: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()  # position embeddings, bias tables and filters that had another grid
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)  # rule of each resampled parameter
    zeros: tuple[str, ...] = ()  # biases that the checkpoint's network lacks, set to zero
    missing: tuple[str, ...] = ()  # parameters left as initialised
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()  # "name: reason"; left as initialised
    nonfinite: tuple[str, ...] = ()  # loaded or resampled tensors with NaN or infinity
    new_head: tuple[str, ...] = ()  # parameters left as initialised on request
    new_plugin: tuple[str, ...] = ()  # parameters of plug-ins that the checkpoint lacks; left as initialised
    ignored: tuple[str, ...] = ()  # buffers that follow from the architecture, and tensors of a head that is not loaded

    @property
    def misfits(self) -> tuple[str, ...]:
        """All reasons for which a strict load fails, a line each."""
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
    """The checkpoint and the model do not fit.

    The message is the text of the load report in `report`.
    """

    def __init__(self, report: LoadReport):
        super().__init__(f"the checkpoint does not fit the model: {report}")
        self.report = report

"""TPU slices by the names of Google Cloud.

Sources: Google Cloud's pages on v4, v5e, v5p and v6e (accelerator types, topologies, chips of a
host), on runtime versions, and GKE's on TPU node selectors.
"""

import dataclasses
import re

from vitlab.config import ConfigError

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A generation of TPUs."""

    type: str  # first part of Google Cloud's accelerator type
    cores: int  # what the accelerator type counts, per chip
    topologies: dict[int, str]  # chips -> layout
    most_per_host: int  # chips of the largest slice of one host
    runtime: str  # --runtime-version
    gke: str  # value of the node label cloud.google.com/gke-tpu-accelerator


KINDS = {
    "v4": Kind(type="v4", cores=2, topologies=_CUBES, most_per_host=4, runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice"),
    "v5e": Kind(type="v5litepod", cores=1, topologies=_FLAT, most_per_host=8, runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice"),
    "v5p": Kind(type="v5p", cores=2, topologies=_CUBES, most_per_host=4, runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice"),
    "v6e": Kind(type="v6e", cores=1, topologies=_FLAT, most_per_host=8, runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips that their own links connect."""

    kind: Kind
    chips: int

    @classmethod
    def of(cls, name: str) -> "Slice":
        """Reads "v5e-16" or "v5litepod-16"; of v4 and v5p the number is that of cores, two a chip.

        Raises:
          ConfigError: There is no such kind or size.
        """
        match = re.fullmatch(r"(\w+)-(\d+)", name)
        kind = next((kind for short, kind in KINDS.items() if match and match[1] in (short, kind.type)), None)
        if match is None or kind is None:
            raise ConfigError(f'--accelerator="{name}" must be a TPU such as v5e-16, v6e-16, v4-32 or v5p-32 for this target')
        chips, rest = divmod(int(match[2]), kind.cores)
        if rest or chips not in kind.topologies:
            sizes = ", ".join(str(size * kind.cores) for size in kind.topologies)
            raise ConfigError(f'--accelerator="{name}": {match[1]} has slices of {sizes}')
        return cls(kind=kind, chips=chips)

    @property
    def type(self) -> str:
        """Google Cloud's accelerator type, such as v5litepod-16."""
        return f"{self.kind.type}-{self.chips * self.kind.cores}"

    @property
    def topology(self) -> str:
        """The layout of the chips, such as 4x4."""
        return self.kind.topologies[self.chips]

    @property
    def chips_per_host(self) -> int:
        """Chips of each host: a slice of one host has all of them, others have four a host."""
        return self.chips if self.chips <= self.kind.most_per_host else 4

    @property
    def hosts(self) -> int:
        """Hosts of the slice."""
        return self.chips // self.chips_per_host

"""The slices of devices for which a plan can be made."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from vitlab.analysis.devices import DEVICES, Device
from vitlab.config import ConfigError, near_misses

_NAME = re.compile(r"(v\d\w?)(?::(\d+(?:x\d+){1,2}))?|(h100|cpu)(?:x(\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A number of devices of one kind."""

    name: str  # name such as v5e:16x16, h100x8 or cpu
    kind: str  # a key of DEVICES
    count: int  # number of chips
    slice: str | None  # such as 16x16; TPUs only

    @classmethod
    def of(cls, name: str) -> "Topology":
        """Reads "v5e:16x16", "v5e" (the smallest host), "h100x8" or "cpu".

        Raises:
          ConfigError: There is no such device, or the name has another form.
        """
        match = _NAME.fullmatch(name)
        kind = (match[1] or match[3]) if match else ""
        if not match or kind not in DEVICES:
            raise ConfigError(f'topology "{name}" must be such as v5e:16x16, v4:4x4x4, h100x8 or cpu: {near_misses(name, DEVICES)}')
        chips = match[2] or DEVICES[kind].default_slice
        count = math.prod(map(int, chips.split("x"))) if chips else int(match[4] or 1)
        if count < 1:
            raise ConfigError(f'topology "{name}" must have at least one device')
        return cls(name=f"{kind}:{chips}" if chips else name, kind=kind, count=count, slice=chips)

    @property
    def device(self) -> Device:
        return DEVICES[self.kind]

    @property
    def is_exact(self) -> bool:
        """Whether the hardware's own compiler is used, not that of as many CPUs."""
        return self.device.platform == "tpu"

    def devices(self) -> Sequence[Any]:
        """Devices to make a mesh of; nothing can run on them.

        Raises:
          ConfigError: The compiler is not installed or does not know the slice, or JAX has begun
            with fewer CPUs.
        """
        if self.is_exact:
            return _tpus(self)
        try:
            jax.config.update("jax_num_cpu_devices", self.count)
        except RuntimeError as error:
            if jax.device_count() < self.count:
                raise ConfigError(f"{self.name} needs {self.count} CPU devices, and this process has begun with fewer") from error
        return jax.devices("cpu")[: self.count]


def missing(kind: str) -> str | None:
    """The reason why nothing can be compiled here for this kind of device, or None."""
    if DEVICES[kind].platform == "tpu" and not importlib.util.find_spec("libtpu"):
        return f'planning for {kind} needs the compiler of TPUs: pip install "vitlab[tpu]"'
    return None


# These settings keep libtpu from looking for a TPU, and from locking out other processes.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


_HOST = (2, 2, 1)  # number of a host's chips along each axis of a slice


def _host(topology: Topology) -> dict[str, Any]:
    """Options for a slice of fewer chips than a host has; none for other slices."""
    sides = [*map(int, (topology.slice or "").split("x")), 1][:3]
    bounds = [min(side, most) for side, most in zip(sides, _HOST, strict=True)]
    return {} if tuple(bounds) == _HOST else {"chips_per_host_bounds": bounds}


def _tpus(topology: Topology) -> Sequence[Any]:
    if reason := missing(topology.kind):
        raise ConfigError(reason)
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **topology.device.options, **_host(topology))
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"the compiler knows no slice {topology.name}: {str(error).splitlines()[0]}") from error
    return found.devices

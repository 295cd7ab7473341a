"""Devices that a plan can be made for, and the slices of them that the compiler knows."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from vitlab.config import ConfigError, near_misses


@dataclasses.dataclass(frozen=True)
class Device:
    """One chip, per its vendor; None where nothing is published."""

    platform: str  # that XLA compiles for
    memory_bytes: float  # that a program may use
    flops_per_second: float | None = None  # bfloat16, dense
    bytes_per_second: float | None = None  # of its memory
    link_bytes_per_second: float | None = None  # to the other chips, one way, all links together
    default_slice: str | None = None  # the smallest host
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the topology


# Google Cloud's documentation, TPU system architecture, one page a version: peak, bandwidth, interconnect (stated both ways; half of
# it here). Memory of TPUs: what XLA's compiler says is available when it refuses a program, a little less than the chip has. H100
# SXM: NVIDIA's data sheet (NVLink 900 GB/s both ways). A chip of v4 and v5p has two cores that run as one ("megacore").
DEVICES: Mapping[str, Device] = {
    "v4": Device("tpu", 30.75 * 2**30, 275e12, 1200e9, 300e9, "2x2x1", {"chip_config_name": "megacore"}),
    "v5e": Device("tpu", 15.75 * 2**30, 197e12, 819e9, 200e9, "2x2"),
    "v5p": Device("tpu", 95.74 * 2**30, 459e12, 2765e9, 600e9, "2x2x1"),
    "v6e": Device("tpu", 31.25 * 2**30, 918e12, 1640e9, 400e9, "2x2"),
    "h100": Device("gpu", 80e9, 989e12, 3352e9, 450e9),
    "cpu": Device("cpu", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))),
}
_NAME = re.compile(r"(v\d\w?)(?::(\d+(?:x\d+){1,2}))?|(h100|cpu)(?:x(\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """So many devices of one kind."""

    name: str  # v5e:16x16, h100x8, cpu
    kind: str  # a key of DEVICES
    count: int  # chips
    slice: str | None  # 16x16, of TPUs

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
        """Whether the compiler of this hardware is asked; else the program is compiled for as many CPUs."""
        return self.device.platform == "tpu"

    def devices(self) -> Sequence[Any]:
        """What a mesh is made of; nothing can run on it.

        Raises:
          ConfigError: Its compiler is not installed or does not know the slice, or JAX has begun with fewer CPUs.
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
    """Why nothing can be compiled for this kind of device here, or None."""
    if DEVICES[kind].platform == "tpu" and not importlib.util.find_spec("libtpu"):
        return f'planning for {kind} needs the compiler of TPUs: pip install "vitlab[tpu]"'
    return None


# What keeps libtpu from looking for a TPU, and from locking out other processes: no device is opened.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def _tpus(topology: Topology) -> Sequence[Any]:
    if reason := missing(topology.kind):
        raise ConfigError(reason)
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **topology.device.options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"the compiler knows no slice {topology.name}: {str(error).splitlines()[0]}") from error
    return found.devices

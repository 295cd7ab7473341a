"""Peak performance and memory of chips."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Device:
    """One chip, as its vendor specifies it; None for unpublished figures."""

    platform: str  # platform that XLA compiles for
    memory_bytes: float  # memory that a program may use
    flops_per_second: float | None = None  # bfloat16, dense
    bytes_per_second: float | None = None  # bandwidth of the chip's memory
    link_bytes_per_second: float | None = None  # bandwidth to other chips, one way, all links together
    default_slice: str | None = None  # topology of the smallest host
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further options of the topology
    kinds: str = ""  # regex of JAX's name of the device
    cycles_per_second: float | None = None  # clock of the core, where it follows from what is published


# Peak, bandwidth and interconnect of TPUs: Google Cloud's documentation, TPU system architecture,
# one page per version; it states the interconnect both ways, half of which is given here. Memory of
# TPUs: the available size in messages of XLA's compiler about too large programs, a little less
# than the chip's. H100 SXM: NVIDIA's data sheet (NVLink 900 GB/s both ways). The two cores of a v4
# or v5p chip run as one ("megacore"). Clock of v5e: its core has 4 matrix units of 128 x 128, so
# 197e12 / 2**17 Hz.
DEVICES: Mapping[str, Device] = {
    "v4": Device("tpu", 30.75 * 2**30, 275e12, 1200e9, 300e9, "2x2x1", {"chip_config_name": "megacore"}, r"TPU v4"),
    "v5e": Device("tpu", 15.75 * 2**30, 197e12, 819e9, 200e9, "2x2", kinds=r"TPU v5( lite|e)", cycles_per_second=1.5e9),
    "v5p": Device("tpu", 95.74 * 2**30, 459e12, 2765e9, 600e9, "2x2x1", kinds=r"TPU v5p?"),
    "v6e": Device("tpu", 31.25 * 2**30, 918e12, 1640e9, 400e9, "2x2", kinds=r"TPU v6( lite|e)"),
    "h100": Device("gpu", 80e9, 989e12, 3352e9, 450e9, kinds=r"NVIDIA H100 .*HBM3"),
    "cpu": Device("cpu", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))),
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's peak FLOP/s in bfloat16 by JAX's name of it; None if unknown."""
    return next((d.flops_per_second for d in DEVICES.values() if d.kinds and re.fullmatch(d.kinds, device_kind)), None)

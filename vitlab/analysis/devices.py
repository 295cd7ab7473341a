"""What a chip can do at most."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any


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
    kinds: str = ""  # pattern of what JAX calls it
    cycles_per_second: float | None = None  # clock of the core, where it follows from what is published


# Clock of v5e: its core has 4 matrix units of 128 x 128, so 197e12 / 2**17 Hz.
# Google Cloud's documentation, TPU system architecture, one page a version: peak, bandwidth, interconnect (stated both ways; half of
# it here). Memory of TPUs: what XLA's compiler says is available when it refuses a program, a little less than the chip has. H100
# SXM: NVIDIA's data sheet (NVLink 900 GB/s both ways). A chip of v4 and v5p has two cores that run as one ("megacore").
DEVICES: Mapping[str, Device] = {
    "v4": Device("tpu", 30.75 * 2**30, 275e12, 1200e9, 300e9, "2x2x1", {"chip_config_name": "megacore"}, r"TPU v4"),
    "v5e": Device("tpu", 15.75 * 2**30, 197e12, 819e9, 200e9, "2x2", kinds=r"TPU v5( lite|e)", cycles_per_second=1.5e9),
    "v5p": Device("tpu", 95.74 * 2**30, 459e12, 2765e9, 600e9, "2x2x1", kinds=r"TPU v5p?"),
    "v6e": Device("tpu", 31.25 * 2**30, 918e12, 1640e9, 400e9, "2x2", kinds=r"TPU v6( lite|e)"),
    "h100": Device("gpu", 80e9, 989e12, 3352e9, 450e9, kinds=r"NVIDIA H100 .*HBM3"),
    "cpu": Device("cpu", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))),
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of bfloat16 of a device by the name that JAX gives it; None if it is not in the table."""
    return next((d.flops_per_second for d in DEVICES.values() if d.kinds and re.fullmatch(d.kinds, device_kind)), None)

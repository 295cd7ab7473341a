"""The processor cores that this process may use."""

import os


def usable_cores() -> int:
    """Number of cores that the process may run on, at least 1; where the system does not say (macOS), all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""The text that starts a run on a cluster; nothing here talks to one."""

from vitlab.launch.job import Job
from vitlab.launch.targets import TARGETS

__all__ = ["TARGETS", "Job"]

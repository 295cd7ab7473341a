"""Facts about a run that a launcher needs."""

import dataclasses
import re

from vitlab.config import ConfigError

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # what Kubernetes and Google Cloud both take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, and the machines for it."""

    command: tuple[str, ...]  # the training command, from `python` on
    name: str  # name of the job; at most 40 lower-case letters, digits and hyphens
    accelerator: str  # TPU slice, v5e-16; or GPUs of a node, 8 or h100:8
    nodes: int = 1  # GPU nodes; a TPU slice has its own number of hosts
    num_slices: int = 1  # TPU slices, along the outer part of the mesh's axis data
    image: str | None = None  # container image with vitlab in it
    env: str | None = None  # SLURM: virtual environment; SkyPilot: what pip installs
    project: str | None = None  # Google Cloud's project
    zone: str | None = None  # us-west4-a; of SkyPilot gcp/us-west4/us-west4-a
    cluster: str | None = None  # xpk: the Kubernetes cluster
    retries: int = 20  # starts after the first
    spot: bool = False  # cheaper machines that may be taken away

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f'--name="{self.name}" must be 1 to 40 lower-case letters, digits and hyphens, and begin with a letter')
        for field in ("nodes", "num_slices"):
            if getattr(self, field) < 1:
                raise ConfigError(f"--{field}={getattr(self, field)} must be at least 1")
        if self.retries < 0:
            raise ConfigError(f"--retries={self.retries} must be at least 0")

    def needs(self, target: str, *fields: str) -> None:
        """Refuses a job that leaves out what the target cannot do without.

        Raises:
          ConfigError: A field is None.
        """
        missing = [f"--{field}" for field in fields if getattr(self, field) is None]
        if missing:
            raise ConfigError(f"--target={target} needs {' and '.join(missing)}")

    def lacks(self, target: str, *fields: str) -> None:
        """Refuses a job that asks for what the target does not have.

        Raises:
          ConfigError: A field has another value than its default.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = [f"--{field}" for field in fields if getattr(self, field) != defaults[field]]
        if given:
            raise ConfigError(f"--target={target} has no {' and no '.join(given)}: leave it out")


def gpus(accelerator: str) -> tuple[str | None, int]:
    """Reads "8" or "h100:8", the GPUs of a node: (kind or None, number).

    Raises:
      ConfigError: The text has another form.
    """
    match = re.fullmatch(r"(?:([\w.-]+):)?([1-9]\d{0,2})", accelerator)
    if match is None:
        raise ConfigError(f'--accelerator="{accelerator}" must be the GPUs of a node for this target: 8 or h100:8')
    return match[1], int(match[2])

"""Curves of a run at Weights & Biases (extra `wandb`): a log that a run can do without."""

import importlib
import logging
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from vitlab.buckets import RunPath, in_bucket
from vitlab.config import ConfigError, Experiment, to_dict
from vitlab.files import exists, read_bytes, write_atomically

logger = logging.getLogger(__name__)

ID_FILE = "wandb_id"  # file in the run folder; its id lets a resumed run continue its curves


class Tracker:
    """One run of a project, to be used in a `with`; errors are reported once and do no harm."""

    def __init__(self, workdir: RunPath, project: str, experiment: Experiment):
        """Begins or continues the run whose id is kept in the run folder, which exists."""
        self._run: Any = None
        self._told = False
        self._folder = tempfile.TemporaryDirectory(prefix="vitlab-") if in_bucket(workdir) else None  # for its client's files
        self._try(lambda: self._begin(workdir, project, experiment))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind, *exc) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=0 if kind is None else 1))
        if self._folder is not None:
            self._folder.cleanup()

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds values to the curves, without non-finite ones, as in metrics.jsonl."""
        if self._run is not None:
            named = {name.replace("_", "/", 1): value for name, value in values.items() if math.isfinite(value)}
            self._try(lambda: self._run.log(named, step=step))

    def _begin(self, workdir: RunPath, project: str, experiment: Experiment) -> None:
        path = workdir / ID_FILE
        name = read_bytes(path).decode(errors="replace").strip() if exists(path) else ""
        if not name.isalnum():
            name = secrets.token_hex(8)
            write_atomically(path, name + "\n")
        wandb = load_wandb()
        self._run = wandb.init(
            project=project,
            id=name,
            resume="allow",
            name=os.path.abspath(workdir).rpartition("/")[2],
            dir=self._folder.name if self._folder is not None else str(workdir),
            config=to_dict(experiment),
            settings=wandb.Settings(console="off"),  # the output stays on the run's own terminal
        )

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # the client raises errors of many kinds: network, service and its own
            if not self._told:
                logger.error("Weights & Biases cannot be used (%s); the run goes on without it", " ".join(str(error).split())[:300])
            self._told = True


def load_wandb() -> ModuleType:
    """The client of Weights & Biases.

    Raises:
      ConfigError: The client is not installed.
    """
    try:
        module = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError('--wandb needs the client of Weights & Biases: pip install "vitlab[wandb]"') from error
    if not hasattr(module, "init"):  # the client makes a folder named wandb, which can be imported too
        raise ConfigError('--wandb finds a folder named wandb in place of the client: pip install "vitlab[wandb]"')
    return module

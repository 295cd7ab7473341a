"""The run folder: whose it is, and what it holds.

config.json (the experiment), data.json (what it is trained on), metrics.jsonl, timing.jsonl, bad_images.jsonl (what could not be decoded),
checkpoints/, tensorboard/, evaluation.json and evaluations/ (by `python -m vitlab.evaluate`), wandb_id and wandb/ (with --wandb),
damaged/ (checkpoints that could not be read).
"""

import dataclasses
import fcntl
import json
import logging
import pathlib
from typing import IO

from vitlab.config import ConfigError, Experiment, difference, from_config_dict, to_json
from vitlab.data import Source
from vitlab.runs.records import write_atomically

logger = logging.getLogger(__name__)

_FIXED = ("model", "data", "augment", "batch_size", "seed", "duration")  # a change of these makes it another run
_FREE = ("data.data_dir", "data.follow_outside", "data.num_threads", "data.num_workers", "data.max_bad_fraction", "data.eval_split")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a run needs to know of its data when the data is not at hand."""

    fingerprint: str  # of the training split
    num_examples: int  # in the training split
    channels: int
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> "DataInfo":
        """That of an open training split."""
        return cls(
            fingerprint=source.fingerprint,
            num_examples=len(source),
            channels=source.channels,
            class_names=tuple(source.class_names),
        )


def claim(workdir: pathlib.Path, experiment: Experiment, data: DataInfo, *, allow_changes: bool = False) -> IO[str]:
    """Makes the folder, or takes over that of the same run.

    Returns:
      The lock, to be closed at the end of the run; the system releases it when the process dies.

    Raises:
      ConfigError: Not writable; in use by another process; or another run's, and the difference is not allowed.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"the run folder {workdir} is not writable: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (workdir / "config.json").exists():
            _check_same(workdir, experiment, data, allow_changes=allow_changes)
    except BlockingIOError as error:
        lock.close()
        raise ConfigError(f"another process is training in {workdir}") from error
    except BaseException:
        lock.close()
        raise
    return lock


def write(workdir: pathlib.Path, experiment: Experiment, data: DataInfo) -> None:
    """Writes config.json and data.json, each at once."""
    write_atomically(workdir / "data.json", json.dumps(dataclasses.asdict(data), indent=2) + "\n")
    write_atomically(workdir / "config.json", to_json(experiment))


def read(workdir: pathlib.Path) -> tuple[Experiment, DataInfo]:
    """The experiment and the data of a run.

    Raises:
      ConfigError: It is no run folder.
    """
    try:
        experiment = from_config_dict(json.loads((workdir / "config.json").read_text()))
        data = json.loads((workdir / "data.json").read_text())
        return experiment, DataInfo(**data | {"class_names": tuple(data["class_names"])})
    except OSError as error:
        raise ConfigError(f"{workdir} is no run folder: {error.filename} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"{workdir} is no run folder of this version: {error}") from error


def _check_same(workdir: pathlib.Path, experiment: Experiment, data: DataInfo, *, allow_changes: bool) -> None:
    old, old_data = read(workdir)
    changes = {name: f"{name}: {a!r} -> {b!r}" for name, (a, b) in difference(old, experiment).items()}
    if old_data != data:
        changes["data.fingerprint"] = f"images: {_text(old_data)} -> {_text(data)}"
    refused = [text for name, text in changes.items() if name.split(".")[0] in _FIXED and name not in _FREE]
    if refused and not allow_changes:
        raise ConfigError(
            f"{workdir} holds a run with another config: {'; '.join(refused)}. Take another folder, or --allow_changes to go on with it"
        )
    for text in changes.values():
        logger.warning("resuming with a change: %s", text)


def _text(data: DataInfo) -> str:
    return f"{data.num_examples} ({data.fingerprint})"

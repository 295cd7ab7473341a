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
from vitlab.data.classes import different_classes
from vitlab.data.splits import is_sliced
from vitlab.runs.records import write_atomically

logger = logging.getLogger(__name__)

_FIXED = ("model", "data", "augment", "batch_size", "seed", "duration")  # a change of these makes it another run
_FREE_DATA = ("data_dir", "follow_outside", "num_threads", "num_workers", "max_bad_fraction", "max_image_bytes", "eval_split")
_FREE = tuple(f"data.{name}" for name in _FREE_DATA)


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
        changes["data.fingerprint"] = change_of_data(old_data, data, experiment.data.train_split)
    refused = [text for name, text in changes.items() if name.split(".")[0] in _FIXED and name not in _FREE]
    if refused and not allow_changes:
        raise ConfigError(
            f"{workdir} holds a run with another config: {'; '.join(refused)}. Take another folder, or --allow_changes to go on with it"
        )
    for text in changes.values():
        logger.warning("resuming with a change: %s", text)


def change_of_data(old: DataInfo, new: DataInfo, split: str) -> str:
    """What is different, and the remedy where this version reads the same files otherwise than the one that began the run."""
    if old.class_names != new.class_names:
        return f"classes: {different_classes(old.class_names, new.class_names, 'the run', 'the data')}"
    text = f"images: {_text(old)} -> {_text(new)}"
    if old.channels != new.channels:
        return f"{text}, channels: {old.channels} -> {new.channels} (1 is grey, 3 RGB; model.in_channels={old.channels} keeps them)"
    if is_sliced(split):
        text += f", which may be another draw of {split} from the same files: the version that began the run draws the old one"
    return text


def _text(data: DataInfo) -> str:
    return f"{data.num_examples} ({data.fingerprint})"

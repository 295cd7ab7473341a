"""The run folder, on a file system or in a bucket: the run that it belongs to, and its files.

config.json (the experiment), data.json (facts about its data), metrics.jsonl, timing.jsonl,
bad_images.jsonl (images that could not be decoded), checkpoints/, tensorboard/, evaluation.json and
evaluations/ (by `python -m vitlab.evaluate`), wandb_id and wandb/ (with --wandb), damaged/
(checkpoints that could not be read).
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vitlab.buckets import RunPath, in_bucket
from vitlab.config import ConfigError, Experiment, difference, from_config_dict, to_json, typed
from vitlab.data import Source
from vitlab.data.classes import different_classes
from vitlab.data.splits import is_sliced
from vitlab.files import exists, read_json, remove, remove_leftovers, write_atomically
from vitlab.parallel import distributed
from vitlab.plugins import raised_in_plugin
from vitlab.printable import printable
from vitlab.runs.claim import Claim, FolderClaim
from vitlab.runs.lease import BucketClaim
from vitlab.runs.records import read_records
from vitlab.tasks import class_names_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TEMPORARY = (".probe-*", "*.orbax-checkpoint-tmp*", "*.tmp")  # patterns of incomplete files in checkpoints/
_REMEDY = "restore it from a copy, or begin anew in another folder"
_FIXED = ("model", "data", "augment", "batch_size", "seed", "duration")  # config keys whose change makes it another run
_FREE_DATA = ("data_dir", "follow_outside", "num_threads", "num_workers", "max_bad_fraction", "max_image_bytes", "eval_split")
_FREE = tuple(f"data.{name}" for name in _FREE_DATA)
_LONGEST_CHANGE = 500  # most characters of a change in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInfo:
    """Facts about a run's data, for use without the data."""

    fingerprint: str  # hash of the training split
    num_examples: int  # number of training images
    channels: int
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> "DataInfo":
        """The facts of an open training split, with the classes of `class_names_of`."""
        return cls(
            fingerprint=source.fingerprint,
            num_examples=len(source),
            channels=source.channels,
            class_names=class_names_of(source),
        )


def claim(workdir: RunPath, experiment: Experiment, data: DataInfo, *, allow_changes: bool = False) -> Claim:
    """Makes the folder, or takes over the folder of the same run; called by all processes.

    Returns:
      The claim on the folder, to be left at the end of the run.

    Raises:
      ConfigError: The folder's name is no UTF-8 text; or the folder is not writable, is in use by
        another process, or belongs to another run whose differences are not allowed; or a file in
        it is damaged.
    """
    first = distributed.on_first(lambda: _first_claim(workdir, experiment, data, allow_changes=allow_changes))
    return first or _join(workdir)


def _first_claim(workdir: RunPath, experiment: Experiment, data: DataInfo, *, allow_changes: bool) -> Claim:
    _check_name(workdir)
    with contextlib.ExitStack() as stack, _refusing(workdir):
        if not in_bucket(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        own = stack.enter_context(_hold(workdir))
        own.lock()
        if exists(own.root / "config.json"):
            _check_same(workdir, experiment, data, allow_changes=allow_changes)
        read_records(own.root / "metrics.jsonl")
        _remove_leftovers(own.root)
        if not in_bucket(own.root):
            (own.root / "checkpoints").mkdir(exist_ok=True)
        stack.pop_all()
    return own


def _join(workdir: RunPath) -> Claim:
    """The claim of a process that is not the first; the first has made and locked the folder."""
    with _refusing(workdir):
        return _hold(workdir)


def _hold(workdir: RunPath) -> Claim:
    return BucketClaim(workdir) if in_bucket(workdir) else FolderClaim(workdir)


@contextlib.contextmanager
def _refusing(workdir: RunPath) -> Iterator[None]:
    """Turns an error of the system into one line for the user."""
    try:
        yield
    except OSError as error:
        name = pathlib.PurePath(str(error.filename or workdir)).name
        what = "" if name == workdir.name else f": {name}"
        if isinstance(error, FileExistsError):
            what += " (a file where a folder should be)"
        raise ConfigError(f"the run folder {workdir} is not writable: {error.strerror or error}{what}") from error


def has_checkpoints(workdir: RunPath) -> bool:
    """Whether a run has saved a step here.

    Raises:
      ConfigError: The folder cannot be read.
    """
    folder = workdir / "checkpoints"
    with _refusing(workdir):
        return exists(folder) and any(entry.name.isdigit() for entry in folder.iterdir())


def check_place(workdir: RunPath) -> None:
    """Refuses a place that no run can write to, before anything is computed.

    Raises:
      ConfigError: Checkpoints cannot be written there.
    """
    if in_bucket(workdir) and not str(workdir).startswith("gs://"):
        raise ConfigError(
            f"the run folder {workdir} can be read, but not be trained in: Orbax writes checkpoints to local paths and gs:// only. Train "
            "in a local folder and copy it (aws s3 sync DIR s3://BUCKET/DIR)"
        )


def write(own: Claim, experiment: Experiment, data: DataInfo) -> None:
    """Writes config.json and data.json, each at once.

    Raises:
      ConfigError: They cannot be written.
    """
    with _refusing(own.path):
        write_atomically(own.root / "data.json", json.dumps(dataclasses.asdict(data), indent=2) + "\n")
        write_atomically(own.root / "config.json", to_json(experiment))
    own.marker = "config.json"


def read(workdir: RunPath) -> tuple[Experiment, DataInfo]:
    """The experiment and the data of a run.

    Raises:
      ConfigError: The path is no run folder, or its config.json or data.json is damaged.
    """
    _check_name(workdir)
    return _read(workdir, "config.json", _experiment), _read(workdir, "data.json", _data_info)


def _read(workdir: RunPath, name: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        tree = read_json(workdir / name)
    except OSError as error:
        raise ConfigError(f"{workdir} is no run folder: {workdir / name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _damaged(workdir / name, error) from error
    if not isinstance(tree, Mapping):
        raise _damaged(workdir / name, f"it holds {type(tree).__name__}, and should hold a group of keys")
    try:
        return parse(tree)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        if raised_in_plugin(error):  # an error in the user's own code keeps its traceback
            raise
        raise _damaged(workdir / name, error) from error


def _damaged(path: RunPath, reason: object) -> ConfigError:
    return ConfigError(f"{path} is damaged or not of this version ({str(reason)[:300]}); {_REMEDY}")


def _experiment(tree: Mapping[str, Any]) -> Experiment:
    experiment = from_config_dict(tree)
    to_json(experiment)  # raises for a value that is nested too deeply
    return experiment


def _data_info(tree: Mapping[str, Any]) -> DataInfo:
    hints = typing.get_type_hints(DataInfo)
    if tree.keys() != hints.keys():
        differing = ", ".join(sorted(tree.keys() ^ hints.keys()))
        raise ConfigError(f"its keys should be {', '.join(hints)}; missing or unknown: {differing}")
    return DataInfo(**{name: typed(tree[name], hint, (name,)) for name, hint in hints.items()})


def _check_name(workdir: RunPath) -> None:
    """Refuses a name that is no UTF-8 text, which neither JAX nor TensorBoard can open."""
    try:
        str(workdir).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the run folder {printable(str(workdir))} must have a name in UTF-8: rename it") from error


def _remove_leftovers(root: RunPath) -> None:
    """Removes temporary files of killed writers of this folder; called under the lock."""
    for name in ("config.json", "data.json", "metrics.jsonl"):
        remove_leftovers(root / name)
    if in_bucket(root):
        return  # Orbax removes checkpoints without their mark of completeness
    for pattern in _TEMPORARY:
        for leftover in (root / "checkpoints").glob(pattern):
            remove(leftover)


def _check_same(workdir: RunPath, experiment: Experiment, data: DataInfo, *, allow_changes: bool) -> None:
    old, old_data = read(workdir)
    changes = {name: _cut(f"{name}: {a!r} -> {b!r}") for name, (a, b) in difference(old, experiment).items()}
    if old_data != data:
        changes["data.fingerprint"] = change_of_data(old_data, data, experiment.data.train_split)
    refused = [text for name, text in changes.items() if name.split(".")[0] in _FIXED and name not in _FREE]
    if refused and not allow_changes:
        raise ConfigError(
            f"{workdir} holds a run with another config: {'; '.join(refused)}. Take another folder, or --allow_changes to go on with it"
        )
    for text in changes.values():
        logger.warning("resuming with a change: %s", text)


def _cut(text: str) -> str:
    """A change, cut to a readable length: a config.json may be damaged."""
    return text if len(text) <= _LONGEST_CHANGE else f"{text[:_LONGEST_CHANGE]}..."


def change_of_data(old: DataInfo, new: DataInfo, split: str) -> str:
    """The difference between the data of a run and the data now.

    It names the remedy if this version reads the same files otherwise than the one that began the
    run.
    """
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

"""Orbax checkpoints with a SHA-256 per leaf, fallback to an older step and a strict comparison.

The name of a checkpoint's folder, its manifest and its state are bound to each other by the number
of steps done: the state has the number as a leaf, and the manifest has that leaf's SHA-256.

Orbax alone restores a flipped bit silently, casts dtypes silently and does not fall back when a
file is damaged; after a failed write it forgets the checkpoints on the disk.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vitlab import buckets
from vitlab.buckets import Patience, RunPath, in_bucket
from vitlab.config import ConfigError
from vitlab.files import exists, remove, write_atomically
from vitlab.parallel import distributed
from vitlab.runs.claim import Claim
from vitlab.runs.retention import Preservation, Retention
from vitlab.tree import leaf_names

logger = logging.getLogger(__name__)

# Orbax item -> the groups of the state in it. Evaluation restores one of the first two; there may
# be no average.
_ITEMS = {"weights": ("params", "model_state"), "average": ("average",), "training": ("opt_state", "step", "interval", "skips")}
_STEP = "step"  # name of the leaf with the number of steps done
_MANIFEST = "manifest"  # name of the item {"leaves": {name: {shape, dtype, sha256}}, "sha256": hash of the leaves' JSON}


class CheckpointError(RuntimeError):
    """There are checkpoints, and none of them can be read."""


class NonFiniteError(RuntimeError):
    """A value is NaN or infinite where it must not be; nothing was saved."""


class SaveError(RuntimeError):
    """The last state of a run could not be written."""


class Checkpoints:
    """Checkpoints of a run in a folder or a bucket, written in the background; to be used in a
    `with`.

    A write that fails, on a full disk or in a folder that is no longer writable, is logged and does
    not end the run.
    """

    def __init__(self, folder: RunPath, *, keep: Retention | None = None, read_only: bool = False, own: Claim | None = None):
        """Keeps the newest checkpoint by default.

        Args:
          folder: Folder of the checkpoints, which is made if need be.
          keep: Rule for the checkpoints that stay.
          read_only: Whether nothing is written or moved.
          own: Claim on the run folder; checkpoints are written into the claimed folder, even if its
            path now leads elsewhere.

        Raises:
          ConfigError: The folder cannot be read, or not be made.
        """
        self._copy = tempfile.TemporaryDirectory(prefix="vitlab-") if str(folder).startswith("s3://") else None  # Orbax reads no s3://
        self.folder, self.read_only, self._own = folder if in_bucket(folder) else folder.absolute(), read_only, own
        self._root = self.folder if own is None else own.root / folder.name
        copy = None if self._copy is None else pathlib.Path(self._copy.name) / "checkpoints"
        self._root = copy or self._root
        self._preservation = Preservation(keep or Retention())
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self._preservation,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            # If a folder cannot be made in the background, Orbax waits for twenty minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._writing: int | None = None  # step of the write in progress
        self._failure: tuple[int, str] | None = None  # step of the newest write and why it failed
        try:
            if copy is not None and in_bucket(self.folder):
                buckets.download(self.folder, copy)
            self._manager = self._open()
        except OSError as error:
            raise ConfigError(f"the checkpoints in {self.folder} cannot be opened: {error.strerror or error}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *exc) -> None:
        if kind is None:
            self.wait()
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):  # the run's own error must not be hidden
            self._manager.close()
        if self._copy is not None:
            self._copy.cleanup()

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        scores: Mapping[int, float] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write the state, which may be donated afterwards; a saved step is left alone.

        Args:
          step: Number of steps done.
          state: The whole state, with the same number as its leaf "step".
          scores: Step -> score of the evaluations so far; higher is better.
          before: Called first; if it raises OSError, the state is not saved.

        Raises:
          NonFiniteError: A leaf is not finite.
          FolderLostError: The run folder is no longer this run's; nothing is written.
          ValueError: The state has another step.
        """
        self.wait()
        if self._own is not None:
            self._own.check()
        if self._failure is not None:
            if in_bucket(self._root) and not self._tried(step, self._probe):
                return
            self._reopen()  # else Orbax forgets the checkpoints on the disk, and leaves the unfinished one
        if step in self._manager.all_steps():
            self._failure = None
            return
        manifest = _manifest(step, state)
        items = {item: ocp.args.StandardSave({k: state[k] for k in keys}) for item, keys in _ITEMS.items() if keys[0] in state}
        self._preservation.scores = dict(scores or {})
        args = ocp.args.Composite(**items, **{_MANIFEST: ocp.args.JsonSave(manifest)})
        if self._tried(step, lambda: (before(), self._probe())) and self._tried(step, lambda: self._begin(step, args)):
            self._writing = step

    def save_last(self, step: int, state: Mapping[str, Any], **options: Any) -> None:
        """Calls `save` and waits; tries twice.

        Raises:
          NonFiniteError: A leaf is not finite.
          FolderLostError: The run folder is no longer this run's; nothing is written.
          SaveError: The state could not be written.
        """
        for last in (False, True):
            if in_bucket(self._root):
                self._tried(step, lambda: self._probe(buckets.PATIENT))  # a network that is dead may come back
            self.save(step, state, **options)
            self.wait()
            if self._failure is None:
                return
            if last:
                raise self._save_error(*self._failure)

    def _save_error(self, step: int, reason: str) -> SaveError:
        self._reopen()
        newest = max(self._manager.all_steps(), default=None)
        rest = "nothing is saved" if newest is None else f"the newest step that is saved is {newest}"
        return SaveError(f"step {step} could not be saved in {self.folder}: {reason}; {rest}")

    def wait(self) -> None:
        """Waits for the write in progress, and logs its failure.

        Raises:
          FolderLostError: It failed because the run folder is no longer this run's.
        """
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        if self._tried(step, self._manager.wait_until_finished):
            self._failure = None

    def restore(self, target: Mapping[str, Any], *, only: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Reads the newest checkpoint that is not damaged, or the one of step `only`.

        A damaged checkpoint is named in the log, and moved to the folder `damaged` beside this one
        once an older one has been read.

        Args:
          target: `jax.ShapeDtypeStruct` with sharding, in the tree that was saved, or its groups
            params and model_state, or average.
          only: Number of steps done; None for the newest.

        Returns:
          The step and state, or None if there is no checkpoint.

        Raises:
          ConfigError: The checkpoint is of another model or optimizer, and the first differing
            tensors are named; or there is none of step `only`.
          CheckpointError: Every checkpoint is damaged, or the bucket cannot be reached.
        """
        damaged, steps = [], sorted(self._manager.all_steps(), reverse=True)
        if only is not None and only not in steps:
            raise ConfigError(f"there is no checkpoint of step {only} in {self.folder}; steps: {', '.join(map(str, steps)) or 'none'}")
        for step in steps if only is None else [only]:
            state, reason = self._try_to_read(step, target)
            if reason and in_bucket(self._root):
                self._wait_for_bucket()
                state, reason = self._try_to_read(step, target)  # the network may have failed, and not the checkpoint
            if state is None or reason:
                logger.warning("checkpoint of step %d in %s is damaged (%s)", step, self.folder, reason)
                damaged.append(step)
                continue
            if damaged:
                logger.warning("going on from step %d, the newest that is whole", step)
                self._set_aside(damaged)
            return step, state
        if damaged:
            raise CheckpointError(f"all checkpoints in {self.folder} are damaged: steps {', '.join(map(str, sorted(damaged)))}")
        return None

    def _try_to_read(self, step: int, target: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """The state of a step, or the reason of any process why it cannot be read."""
        state, reason = None, ""
        try:
            state = self._read(step, target)
        except ConfigError:
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever they meet in a damaged file
            reason = self._one_line(error)
        return state, distributed.first_error(reason)

    def _wait_for_bucket(self) -> None:
        reason = ""
        try:
            exists(self._root)
        except OSError as error:
            reason = str(error)
        reason = distributed.first_error(reason)
        if reason:
            raise CheckpointError(f"the checkpoints in {self.folder} cannot be read: {reason}")

    def _read(self, step: int, target: Mapping[str, Any]) -> dict[str, Any]:
        manifest = self._manager.restore(step, args=ocp.args.Composite(**{_MANIFEST: ocp.args.JsonRestore()}))[_MANIFEST]
        if _json_sha256(manifest["leaves"]) != manifest["sha256"]:
            raise ValueError("its manifest does not match its checksum")
        counter = manifest["leaves"][_STEP]
        if _sha256(np.asarray(step, counter["dtype"])) != counter["sha256"]:
            raise ValueError(f"its state is of another step than {step}, the name of its folder")
        _compare(manifest["leaves"], target)
        items = {item: {k: target[k] for k in keys} for item, keys in _ITEMS.items() if keys[0] in target}
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in items.items()})
        restored = self._manager.restore(step, args=args)
        state = {k: v for item in items for k, v in restored[item].items()}
        for name, leaf in _named(state).items():
            if _sha256(_whole(leaf)) != manifest["leaves"][name]["sha256"]:
                raise ValueError(f"{name} does not match its checksum")
        return state

    def _probe(self, patience: Patience | None = None) -> None:
        """Raises OSError if nothing can be written.

        Otherwise the processes inside Orbax would wait for the one that could not write.
        """
        if in_bucket(self._root):
            buckets.write(self._root.parent / f".probe-{jax.process_index()}", b"", patience or buckets.ONCE)
            return
        probe = self._root / f".probe-{jax.process_index()}"
        remove(probe)  # a process that was killed here may have left it
        probe.mkdir()
        try:
            write_atomically(probe / "probe", "")
        finally:
            remove(probe)

    def _begin(self, step: int, args: Any) -> None:
        if not self._manager.save(step, args=args):
            raise RuntimeError(f"a newer step is there: {max(self._manager.all_steps())}")

    def _tried(self, step: int, write: Callable[[], Any]) -> bool:
        """Whether the write worked in all processes; a failure is logged."""
        reason = ""
        try:
            write()
        except Exception as error:  # Orbax and TensorStore raise errors of any kind for a full disk
            reason = self._one_line(error)
        reason = distributed.first_error(reason)
        if reason:
            if self._own is not None:
                self._own.check()  # a lost folder is the reason to report
            logger.error("step %d could not be saved (%s); the run goes on from memory and tries again at its next save", step, reason)
            self._failure = (step, reason)
        return not reason

    def _set_aside(self, steps: list[int]) -> None:
        if self.read_only:
            return
        distributed.on_first(lambda: _move(steps, self._root, self._root.parent / "damaged"))
        self._reopen()

    def _one_line(self, error: Exception) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        return (text if self._own is None else self._own.shown(text))[:300]

    def _reopen(self) -> None:
        with contextlib.suppress(Exception):  # a failed write raises its error again, or another of the same cause
            self._manager.close()
        with contextlib.suppress(OSError):
            self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._root, options=self._options, item_names=(*_ITEMS, _MANIFEST))


def _move(steps: list[int], folder: RunPath, aside: RunPath) -> None:
    try:
        for step in steps:
            source, target = folder / str(step), aside / str(step)
            remove(target)  # the step may have been damaged before
            if in_bucket(source) and in_bucket(target):
                buckets.move(source, target)
            else:
                target.parent.mkdir(exist_ok=True)
                shutil.move(source, target)
    except OSError as error:
        raise ConfigError(f"damaged checkpoints cannot be moved to the folder damaged/: {error.strerror}; move them away") from error


def _manifest(step: int, state: Any) -> dict[str, Any]:
    if (done := int(_whole(state[_STEP]))) != step:
        raise ValueError(f"the state is of step {done}, and cannot be saved as {step=}")
    described = {}
    for name, x in _named(state).items():
        leaf = _whole(x)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            raise NonFiniteError(f"step {step}: {name} is not finite; this state is not saved")
        described[name] = _describe(leaf) | {"sha256": _sha256(leaf)}
    return {"leaves": described, "sha256": _json_sha256(described)}


def _whole(leaf: Any) -> np.ndarray:
    """The array on this host, gathered from other hosts if they hold parts of it."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _named(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def _describe(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _sha256(leaf: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def _json_sha256(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _compare(saved: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Refuses another shape, dtype or set of tensors within the groups of `target`."""
    wanted = {name: _describe(leaf) for name, leaf in _named(target).items()}
    saved = {n: {k: v[k] for k in ("shape", "dtype")} for n, v in saved.items() if n.split("/")[0] in target}
    differing = [n for n in dict.fromkeys([*wanted, *saved]) if wanted.get(n) != saved.get(n)]
    differing.sort(key=lambda name: not name.startswith("params/"))  # the optimizer's state differs only because the parameters do
    if differing:
        first = "; ".join(f"{n}: checkpoint {_text(saved.get(n))}, model {_text(wanted.get(n))}" for n in differing[:3])
        raise ConfigError(f"the checkpoint is of another model or optimizer; {len(differing)} tensors differ, first {first}")


def _text(description: Mapping[str, Any] | None) -> str:
    return "has none" if description is None else f"{description['dtype']}{description['shape']}"

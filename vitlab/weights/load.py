"""Loads foreign checkpoints into models of the zoo, and reports on every tensor.

A foreign checkpoint is one of the authors or of timm; its names and layouts are called foreign.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitlab.weights.fit import fit
from vitlab.weights.flax_tree import dotted
from vitlab.weights.hub import download
from vitlab.weights.naming import Naming, find_naming, maps_of
from vitlab.weights.reading import Checkpoint, read_checkpoint
from vitlab.weights.report import LoadReport, WeightsMismatchError
from vitlab.weights.rules import Layout, Summand, part_of

__all__ = ["Head", "LoadReport", "WeightsMismatchError", "load_weights", "parameters", "read_source"]

Head = Literal["load", "fit", "new"]
Placed = dict[str, list[tuple[str, tuple[Layout, ...]]]]  # parameter -> foreign names, with changes of layout
_HEADS = ("head", "aux_head", "task_head")  # first parts of names that depend on the classes or the task
_AHEAD = 4  # tensors that are read ahead, each by a thread
_COUNTERS = (r"(^|\.)num_batches_tracked$", r"^n_averaged$")  # counters of torch's BatchNorm and AveragedModel


def load_weights(
    model: nnx.Module,
    source: str | pathlib.Path | Mapping[str, np.ndarray] | Checkpoint,
    *,
    strict: bool = True,
    head: Head = "load",
    entry: str | None = None,
) -> LoadReport:
    """Loads a checkpoint of the authors or of timm into a model, in place.

    Prefixes that wrappers put before names (`module.`, `_orig_mod.`, `model.`, `backbone.`) are
    found and removed. Position embeddings, relative position tables and spectral filters of another
    grid are resampled to the model's. A tensor for another `in_channels` or `num_classes` is a
    mismatch. Plug-ins (`vitlab.layers.plug_ins`) stay as initialised if the checkpoint has none.

    Args:
      model: A model of `create_model`.
      source: A `.safetensors`, `.npz` or torch file, a `*.index.json` of several, a folder with one
        of these, `hf://owner/name[@revision][/file]` (extra `hub`), tensors by name, or a result of
        `read_source`. "file.pth#entry" selects an entry of a file.
      strict: Whether a missing, unexpected, mismatched or non-finite tensor is refused rather than
        only reported. Non-finite tensors count because they make every output NaN.
      head: "load" treats the head like other parts. "fit" loads its tensors that fit and leaves the
        others as initialised, for other classes; "new" leaves the whole head as initialised. The
        rest of the network stays strict.
      entry: The key of a torch file's dictionary, such as "model". None takes an average of the
        weights if the file has one, as timm does.

    Returns:
      The report, with the file, entry, names, prefix and rules of resampling that were used.

    Raises:
      WeightsMismatchError: Under `strict`, if anything does not fit; the model is then unchanged.
      FileNotFoundError, ImportError, ValueError: See `read_checkpoint`.
    """
    if isinstance(source, Mapping):
        source = Checkpoint(tensors=source, origin="")
    checkpoint = source if isinstance(source, Checkpoint) else read_source(str(source), entry)
    checkpoint = dataclasses.replace(checkpoint, tensors=dotted(checkpoint.tensors))
    report, new = _matched(model, checkpoint, head)
    if strict and report.misfits:
        raise WeightsMismatchError(report)
    targets = parameters(model)
    for name, value in new.items():
        targets[name].set_value(value)
    return report


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters and BatchNorm statistics of a model, by dotted name."""
    return {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))}


def read_source(source: str, entry: str | None = None) -> Checkpoint:
    """The checkpoint at a path or address, which may end in #entry, to load several models from.

    Raises:
      FileNotFoundError, ImportError, OSError, ValueError: See `read_checkpoint` and
        `vitlab.weights.hub.download`.
    """
    if not os.path.exists(source) and "#" in source:
        source, _, named = source.rpartition("#")
        if entry is not None and named != entry:
            raise ValueError(f"{source}#{named} and {entry=} name two entries; give one")
        entry = named
    return read_checkpoint(download(source) if source.startswith("hf://") else pathlib.Path(source), entry)


def _matched(model: nnx.Module, checkpoint: Checkpoint, head: Head) -> tuple[LoadReport, dict[str, jax.Array]]:
    """The report, and the new values of the parameters."""
    targets = parameters(model)
    naming = find_naming(checkpoint.tensors, targets, maps_of(model))
    if (fused := naming.name_map.deployed) and any(re.search(fused, naming.strip(name)) for name in checkpoint.tensors):
        raise ValueError(f"{checkpoint.origin or 'the checkpoint'} is of the deployed form, its branches fused: load the training form")
    placed, unexpected, ignored = _place(checkpoint, naming, targets, head)
    new, rules, reasons = _values(placed, checkpoint, targets)
    zeros = _zeros(naming.name_map.zeros, targets, placed)
    new |= {name: jnp.zeros(targets[name].shape) for name in zeros}
    absent = [name for name in targets if name not in placed and name not in zeros]
    plugs = [] if any(_in_plugin(name) for name in placed) else [name for name in absent if _in_plugin(name)]
    anew = [name for name in (*absent, *reasons) if head != "load" and _in_head(name)]
    report = LoadReport(
        source=checkpoint.origin + f"#{checkpoint.entry}" * bool(checkpoint.entry),
        other_entries=checkpoint.other_entries,
        name_map=naming.name_map.source,
        prefixes=naming.prefixes_of(checkpoint.tensors),
        loaded=tuple(name for name in new if name not in rules and name not in zeros),
        zeros=tuple(zeros),
        resampled=tuple(rules),
        rules=rules,
        missing=tuple(name for name in absent if name not in anew and name not in plugs),
        unexpected=tuple(unexpected),
        mismatched=tuple(f"{name}: {why}" for name, why in reasons.items() if name not in anew),
        nonfinite=tuple(name for name, value in new.items() if not _is_finite(np.asarray(value))),
        new_head=tuple(anew),
        new_plugin=tuple(plugs),
        ignored=tuple(ignored),
    )
    return report, new


def _place(checkpoint: Checkpoint, naming: Naming, targets: Mapping[str, Any], head: Head) -> tuple[Placed, list[str], list[str]]:
    """Assigns foreign tensors to parameters; also returns unexpected and ignored names."""
    placed: Placed = {}
    unexpected, ignored = [], []
    for foreign in checkpoint.tensors:
        places = naming.places(foreign, targets)
        name, target, _ = places[0]
        passed_over = head != "load" and _in_head(target or name) and (head == "new" or target is None)
        if passed_over or naming.is_ignored(foreign, (*naming.name_map.ignored, *_COUNTERS)):
            ignored.append(foreign)
        elif target is None:
            adds_nothing = _is_bias_of(name, targets) and not np.any(np.asarray(checkpoint.tensors[foreign]))
            (ignored if adds_nothing else unexpected).append(foreign)
        else:
            for _, one, layouts in places:
                assert one is not None  # `places` returns none only alone
                placed.setdefault(one, []).append((foreign, layouts))
    return placed, unexpected, ignored


def _is_bias_of(name: str, targets: Mapping[str, Any]) -> bool:
    """Whether a name is the bias of a layer that has no bias in the model."""
    stem, _, leaf = name.rpartition(".")
    return leaf == "bias" and f"{stem}.kernel" in targets


def _zeros(pattern: str, targets: Mapping[str, Any], placed: Placed) -> list[str]:
    """The parameters matching `pattern`, which are zero if the checkpoint has none of them.

    A checkpoint with some of them is incomplete, and the result empty.
    """
    named = [name for name in targets if pattern and re.search(pattern, name)]
    return [] if any(name in placed for name in named) else named


def _values(
    placed: Placed, checkpoint: Checkpoint, targets: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], dict[str, str], dict[str, str]]:
    """The new values, the rules of resampled ones, and the reasons of misfits, each by name."""
    new, rules, reasons = {}, {}, {}
    for name, value in _read_ahead(placed, checkpoint):
        try:
            if isinstance(value, ValueError):
                raise value
            new[name], rule = _fitted(name, value, checkpoint.grids.get(placed[name][0][0]), targets[name])
        except ValueError as error:
            reasons[name] = str(error)
            continue
        if rule:
            rules[name] = rule
    return new, rules, reasons


def _read_ahead(placed: Placed, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray | ValueError]]:
    """The foreign tensor of each parameter, or why there is none; some are read while the caller
    works on those before them.
    """

    def read(name: str) -> np.ndarray | ValueError:
        try:
            return _foreign(placed[name], checkpoint)
        except ValueError as error:
            return error

    names, ahead = iter(placed), collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_AHEAD, "vitlab-weights") as pool:
        for name in itertools.chain(names, [None] * _AHEAD):
            if name is not None:
                ahead.append((name, pool.submit(read, name)))
            if ahead and (len(ahead) > _AHEAD or name is None):
                first, future = ahead.popleft()
                yield first, future.result()


def _is_finite(value: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity; the sum, which is quicker to have than an array of
    answers, tells of most.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(value.sum())) or bool(np.isfinite(value).all())


def _in_head(name: str) -> bool:
    return name.startswith(_HEADS)


def _in_plugin(name: str) -> bool:
    return ".plugin." in name


def _foreign(found: list[tuple[str, tuple[Layout, ...]]], checkpoint: Checkpoint) -> np.ndarray:
    """The value of a parameter in a checkpoint, its layouts changed and its parts joined.

    Raises:
      ValueError: The checkpoint has none; the message is the reason.
    """
    values = []
    for foreign, layouts in found:
        value = np.asarray(checkpoint.tensors[foreign])
        for layout in layouts:
            value = layout.forward(value)
        values.append(value)
    return _joined(found, values)


def _fitted(name: str, value: np.ndarray, declared: tuple[int, int] | None, target: Any) -> tuple[jax.Array, str]:
    """The parameter that a foreign tensor gives, and the rule by which it was resampled.

    Raises:
      ValueError: The reason why it gives none.
    """
    metadata = target.get_metadata()
    options = {"resize": metadata["resize"]} if "resize" in metadata else {}
    return fit(name, value, target.shape, grid=metadata.get("grid"), declared=declared, **options)


def _joined(found: list[tuple[str, tuple[Layout, ...]]], values: list[np.ndarray]) -> np.ndarray:
    """Joins a checkpoint's tensors for one parameter: a single tensor, parts, or summands.

    Raises:
      ValueError: Parts are missing or differ in shape, or two tensors have the same place.
    """
    parts = [part_of(layouts) for _, layouts in found]
    names = ", ".join(foreign for foreign, _ in found)
    added = [any(isinstance(layout, Summand) for layout in layouts) for _, layouts in found]
    if any(added):
        if added.count(False) != 1 or len({value.shape for value in values}) != 1:
            raise ValueError(f"tensors that are no sum: {names}")
        return np.sum([np.asarray(value, np.float32) for value in values], 0)
    by_index = {part.index: value for part, value in zip(parts, values, strict=True) if part is not None}
    if not by_index:
        if len(values) > 1:
            raise ValueError(f"several tensors: {names}")
        return values[0]
    count = next(part.count for part in parts if part is not None)
    if len(values) != count or len(by_index) != count:
        raise ValueError(f"{len(values)} of {count} parts: {names}")
    if len({value.shape for value in values}) != 1 or values[0].ndim == 0:
        raise ValueError(f"parts of unequal shapes {[value.shape for value in values]}: {names}")
    return np.concatenate([by_index[i] for i in range(count)])

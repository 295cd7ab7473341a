"""Foreign checkpoints into models of the zoo, with a report of every tensor."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from vitlab.weights.fit import fit
from vitlab.weights.naming import Naming, find_naming, maps_of
from vitlab.weights.reading import Checkpoint, read_checkpoint
from vitlab.weights.report import LoadReport, WeightsMismatchError
from vitlab.weights.rules import Layout

__all__ = ["Head", "LoadReport", "WeightsMismatchError", "load_weights", "parameters"]

Head = Literal["load", "fit", "new"]
Placed = dict[str, list[tuple[str, tuple[Layout, ...]]]]  # foreign names, and changes of layout, by the name here
_HEADS = ("head", "aux_head", "task_head")  # first parts of the names of all that depends on the classes or the task
_COUNTERS = (r"(^|\.)num_batches_tracked$", r"^n_averaged$")  # counters of torch's BatchNorm and AveragedModel


def load_weights(
    model: nnx.Module,
    source: str | pathlib.Path | Mapping[str, np.ndarray],
    *,
    strict: bool = True,
    head: Head = "load",
    entry: str | None = None,
) -> LoadReport:
    """Loads a checkpoint of the authors or of timm into a model, in place.

    Prefixes that wrappers put before names (`module.`, `_orig_mod.`, `model.`, `backbone.`) are found and removed. Position
    embeddings, relative position tables and spectral filters of another grid are resampled to the model's; a table of another
    `in_channels` or `num_classes` is a mismatch.

    Args:
      model: From `create_model`.
      source: A `.safetensors`, `.npz` or torch file, `hf://owner/name` (extra `hub`), or tensors by name. A file of
        several entries takes "file.pth#entry".
      strict: Refuse a missing, unexpected, mismatched or non-finite tensor; otherwise it is only reported. A tensor with NaN
        or infinity makes every output NaN, so a strict load refuses it like one that is missing.
      head: "load" treats the head as every other part. "fit" loads the head where it fits and leaves the rest of it as
        initialised, for other classes; "new" leaves all of it as initialised. The rest of the network stays strict.
      entry: The key of a torch file's dictionary, such as "model". None takes an average of the weights where the file has
        one, as timm does.

    Returns:
      The report, which also says which file, entry, names, prefix and rules of resampling were used.

    Raises:
      WeightsMismatchError: Under `strict`, when anything does not fit; the model is then unchanged.
      FileNotFoundError, ImportError, ValueError: See `read_checkpoint`.
    """
    checkpoint = Checkpoint(tensors=source, origin="") if isinstance(source, Mapping) else _read(str(source), entry)
    report, new = _matched(model, checkpoint, head)
    if strict and report.misfits:
        raise WeightsMismatchError(report)
    targets = parameters(model)
    for name, value in new.items():
        targets[name].set_value(value)
    return report


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters and BatchNorm statistics of a model by their dotted names."""
    return {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))}


def _read(source: str, entry: str | None) -> Checkpoint:
    """The checkpoint at a path or address, which may end in #entry."""
    if not os.path.exists(source) and "#" in source:
        source, _, named = source.rpartition("#")
        if entry is not None and named != entry:
            raise ValueError(f"{source}#{named} and {entry=} name two entries; give one")
        entry = named
    return read_checkpoint(_local(source), entry)


def _local(source: str) -> pathlib.Path:
    if not source.startswith("hf://"):
        return pathlib.Path(source)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{source} needs huggingface_hub: pip install "vitlab[hub]"') from error
    return pathlib.Path(hf_hub_download(source.removeprefix("hf://"), "model.safetensors"))


def _matched(model: nnx.Module, checkpoint: Checkpoint, head: Head) -> tuple[LoadReport, dict[str, jax.Array]]:
    """The report, and the new values of the parameters."""
    targets = parameters(model)
    naming = find_naming(checkpoint.tensors, targets, maps_of(model))
    placed, unexpected, ignored = _place(checkpoint, naming, targets, head)
    new, rules, reasons = _values(placed, checkpoint, targets)
    absent = [name for name in targets if name not in placed]
    anew = [name for name in (*absent, *reasons) if head != "load" and _in_head(name)]
    report = LoadReport(
        source=checkpoint.origin + f"#{checkpoint.entry}" * bool(checkpoint.entry),
        other_entries=checkpoint.other_entries,
        name_map=naming.name_map.source,
        prefixes=naming.prefixes_of(checkpoint.tensors),
        loaded=tuple(name for name in new if name not in rules),
        resampled=tuple(rules),
        rules=rules,
        missing=tuple(name for name in absent if name not in anew),
        unexpected=tuple(unexpected),
        mismatched=tuple(f"{name}: {why}" for name, why in reasons.items() if name not in anew),
        nonfinite=tuple(name for name, value in new.items() if not np.isfinite(np.asarray(value)).all()),
        new_head=tuple(anew),
        ignored=tuple(ignored),
    )
    return report, new


def _place(checkpoint: Checkpoint, naming: Naming, targets: Mapping[str, Any], head: Head) -> tuple[Placed, list[str], list[str]]:
    """The foreign tensors of each parameter, and those that are unexpected and ignored."""
    placed: Placed = {}
    unexpected, ignored = [], []
    for foreign in checkpoint.tensors:
        name, target, layouts = naming.place(foreign, targets)
        passed_over = head != "load" and _in_head(target or name) and (head == "new" or target is None)
        if passed_over or any(re.search(p, naming.strip(foreign)) for p in (*naming.name_map.ignored, *_COUNTERS)):
            ignored.append(foreign)
        elif target is None:
            unexpected.append(foreign)
        else:
            placed.setdefault(target, []).append((foreign, layouts))
    return placed, unexpected, ignored


def _values(
    placed: Placed, checkpoint: Checkpoint, targets: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], dict[str, str], dict[str, str]]:
    """The new values by name, the rules by which some were resampled, and the reasons why others fit not."""
    new, rules, reasons = {}, {}, {}
    for name, found in placed.items():
        try:
            new[name], rule = _value(name, found, checkpoint, targets[name])
        except ValueError as error:
            reasons[name] = str(error)
            continue
        if rule:
            rules[name] = rule
    return new, rules, reasons


def _in_head(name: str) -> bool:
    return name.startswith(_HEADS)


def _value(name: str, found: list[tuple[str, tuple[Layout, ...]]], checkpoint: Checkpoint, target: Any) -> tuple[jax.Array, str]:
    """The parameter that a foreign tensor gives, and the rule by which it was resampled.

    Raises:
      ValueError: The reason why it gives none.
    """
    if len(found) > 1:
        raise ValueError(f"several tensors: {', '.join(foreign for foreign, _ in found)}")
    foreign, layouts = found[0]
    value = np.asarray(checkpoint.tensors[foreign])
    for layout in layouts:
        value = layout.forward(value)
    return fit(name, value, target.shape, grid=target.get_metadata().get("grid"), declared=checkpoint.grids.get(foreign))

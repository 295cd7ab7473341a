"""Foreign checkpoints into models of the zoo, with a report of every tensor."""

import dataclasses
import importlib
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitlab.layers.pos_embed import resample
from vitlab.layers.resize import resize_axis, resize_bilinear
from vitlab.weights.reading import read_tensors
from vitlab.weights.rules import rename

# The last part of a foreign name -> what the same parameter may be called here.
_LEAVES = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",), "running_var": ("var",)}
_LINES = ("ah_bias", "aw_bias", "ha_bias", "wa_bias")  # one value a row or column, on the last axis
_NEVER = (r"num_batches_tracked$",)  # a counter of torch's BatchNorm


class WeightsMismatchError(ValueError):
    """The checkpoint and the model do not fit; the message is the load report."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor; names are this project's, those of `unexpected` and `ignored` the checkpoint's."""

    loaded: tuple[str, ...]
    resampled: tuple[str, ...]  # position embeddings and bias tables of another size
    missing: tuple[str, ...]  # left as initialised
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]  # "name: checkpoint (shape), model (shape)"; left as initialised
    ignored: tuple[str, ...]  # buffers that follow from the architecture

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, f.name))} {f.name}" for f in dataclasses.fields(self))
        lines = [f"{counts}"]
        for kind in ("resampled", "missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            lines += [f"  {kind}: {name}" for name in names[:10]]
            lines += [f"  {kind}: and {len(names) - 10} more"] * (len(names) > 10)
        return "\n".join(lines)


def load_weights(model: nnx.Module, source: str | pathlib.Path | Mapping[str, np.ndarray], *, strict: bool = True) -> LoadReport:
    """Loads a checkpoint of the authors or of timm into a model, in place.

    Position embeddings and relative position bias tables are resampled (bicubic) to the model's size; a table of
    another `in_channels` or `num_classes` is a mismatch.

    Args:
      model: From `create_model`.
      source: A `.safetensors` or `.pth` file, `hf://owner/name` (extra `hub`), or tensors by name.
      strict: Refuse a missing, unexpected or mismatched tensor; otherwise it is only reported.

    Raises:
      WeightsMismatchError: Under `strict`, when anything does not fit; the model is then unchanged.
      FileNotFoundError, ImportError, ValueError: See `read_tensors`.
    """
    tensors = dict(source) if isinstance(source, Mapping) else read_tensors(_local(str(source)))
    names = importlib.import_module(f"vitlab.weights.names.{type(model).__module__.rsplit('.', 1)[-1]}")
    rules = names.rules_for(set(tensors)) if hasattr(names, "rules_for") else names.RULES
    targets = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))}
    new: dict[str, jax.Array] = {}
    out: dict[str, list[str]] = {f.name: [] for f in dataclasses.fields(LoadReport)}
    for foreign, value in tensors.items():
        if any(re.search(p, foreign) for p in (*names.IGNORED, *_NEVER)):
            out["ignored"].append(foreign)
            continue
        renamed, value = rename(foreign, np.asarray(value), rules)
        name = _target(renamed, targets)
        if name is None:
            out["unexpected"].append(foreign)
            continue
        shape = targets[name].shape
        fitted, how = _fit(name, _to_flax_layout(name, value), shape, model)
        if fitted is None:
            out["mismatched"].append(f"{name}: checkpoint {value.shape}, model {shape}")
            continue
        new[name] = fitted
        out[how].append(name)
    mismatched = {m.split(":")[0] for m in out["mismatched"]}
    out["missing"] = [n for n in targets if n not in new and n not in mismatched]
    report = LoadReport(**{k: tuple(v) for k, v in out.items()})
    if strict and (report.missing or report.unexpected or report.mismatched):
        raise WeightsMismatchError(f"the checkpoint does not fit the model: {report}")
    for name, value in new.items():
        targets[name].set_value(value)
    return report


def _local(source: str) -> pathlib.Path:
    if not source.startswith("hf://"):
        return pathlib.Path(source)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{source} needs huggingface_hub: pip install "vitlab[hub]"') from error
    return pathlib.Path(hf_hub_download(source.removeprefix("hf://"), "model.safetensors"))


def _target(name: str, targets: Mapping[str, Any]) -> str | None:
    if name in targets:
        return name
    stem, _, leaf = name.rpartition(".")
    candidates = (f"{stem}.{here}" for here in _LEAVES.get(leaf, ()))
    return next((c for c in candidates if c in targets), None)


def _to_flax_layout(name: str, value: np.ndarray) -> np.ndarray:
    """Torch keeps (out, in, *window), Flax (*window, in, out)."""
    if name.rpartition(".")[2] != "kernel" or value.ndim < 2:
        return value
    return np.moveaxis(value, (0, 1), (-1, -2))


def _fit(name: str, value: np.ndarray, shape: tuple[int, ...], model: Any) -> tuple[jax.Array | None, str]:
    leaf = name.rpartition(".")[2]
    if leaf == "kernel" and value.shape != shape and value.size == math.prod(shape) and value.shape[-2:] == shape[-2:]:
        value = value.reshape(shape)  # a 1x1 convolution and a linear map are the same parameter
    if value.shape == shape:
        return jnp.asarray(value, jnp.float32), "loaded"
    if leaf == "pos_embed" and value.shape[-1] == shape[-1]:
        prefix = model.config.num_class_tokens
        side = round((value.shape[1] - prefix) ** 0.5)
        if side**2 + prefix == value.shape[1]:
            return resample(jnp.asarray(value), (side, side), model.config.grid, num_prefix=prefix), "resampled"
    if leaf == "pos_map" and value.ndim == len(shape) and value.shape[-1] == shape[-1]:
        return resize_bilinear(jnp.asarray(value), (shape[1], shape[2])), "resampled"
    if leaf in _LINES and value.ndim == len(shape) and value.shape[:-1] == shape[:-1]:
        return resize_axis(jnp.asarray(value), -1, shape[-1]), "resampled"
    if leaf == "rel_pos_bias" and value.ndim == len(shape) and value.shape[0] == shape[0]:
        return jax.image.resize(jnp.asarray(value), shape, "cubic"), "resampled"
    return None, ""

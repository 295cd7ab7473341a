"""Reads files of torch.save as numpy arrays by name, with torch's restricted reader.

Only plain tensors are read.
"""

import argparse
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

# Keys under which authors store the weights, likeliest first. Averages of the weights come first,
# as in timm.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "ema_model", "params_ema")
_FOLLOWERS = ("teacher", "target_encoder")  # averages too, which self-supervised methods publish
_RAW = ("state_dict", "model", "model_state_dict", "module", "net", "network", "params", "student", "encoder")
_ENTRIES = (*_AVERAGES, *_FOLLOWERS, *_RAW)
_MAX_DEPTH = 4  # deepest nesting of entries


def read(path: pathlib.Path, entry: str | None = None) -> tuple[dict[str, np.ndarray], str, tuple[str, ...]]:
    """Reads the tensors of a file of torch.save.

    Args:
      path: The file.
      entry: The key of the file's dictionary; None takes a model average if there is one, else the
        weights.

    Returns:
      Arrays by name; the keys that led to them, joined by "/"; and other keys that hold tensors.

    Raises:
      ValueError: The file is damaged, has contents other than plain tensors, or has no such entry.
      ImportError: torch is missing; the extra `parity` has it.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'{path.name}: reading it needs torch; pip install "vitlab[parity]", or convert to .safetensors') from error
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the authors' arguments, harmless and in many files
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, none of which justifies unpickling
        raise ValueError(f"{path.name} cannot be read as plain tensors (weights_only): {_reason(error)}") from error
    found = _entries(loaded, torch.Tensor)
    if entry is not None and entry not in found:
        raise ValueError(f'{path.name} has no entry "{entry}" of tensors; it has: {", ".join(found) or "none"}')
    taken = entry if entry is not None else next(iter(found), "")
    part, keys = _innermost(loaded[taken] if taken else loaded, torch.Tensor)
    tensors = {name: value for name, value in part.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors by name")
    _check_size(path, tensors)
    arrays = {name: _array(f"{path.name}: {name}", tensor) for name, tensor in tensors.items()}
    return arrays, "/".join([taken] * bool(taken) + keys), tuple(key for key in found if key != taken)


def _check_archive(path: pathlib.Path) -> None:
    """Refuses an archive that torch.save cannot have written.

    torch.save does not compress, so the parts cannot exceed the file's size.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path.name} is not a whole archive: {error}") from error
    if any(m.filename.partition("/")[2].startswith("code/") for m in members):
        raise ValueError(f"{path.name} is a TorchScript program, which is never run: save its state_dict() as .safetensors")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > path.stat().st_size:
        raise ValueError(f"{path.name} is a compressed archive, which torch.save never writes: not unpacked")


def _check_size(path: pathlib.Path, tensors: Mapping[str, Any]) -> None:
    """Refuses tensors larger than the file, such as views that repeat one number."""
    for name, tensor in tensors.items():
        if tensor.numel() > path.stat().st_size:
            raise ValueError(f"{path.name}: {name} has {tensor.numel()} numbers, more than the file has bytes")
    if sum(tensor.numel() for tensor in tensors.values()) > path.stat().st_size:
        raise ValueError(f"{path.name}: its tensors have more numbers than the file has bytes")


def _reason(error: Exception) -> str:
    """The line of torch's message that names the refused contents."""
    text = str(error)
    refused = re.search(r"Unsupported (?:global|class|operand)[^\n.]*\S+", text)
    if refused:
        return f"{refused[0].rstrip('.')}; save its tensors alone"
    return next(iter(text.splitlines()), "") or type(error).__name__


def _entries(loaded: Any, tensor: type) -> list[str]:
    """The keys of a dictionary that hold tensors, the preferred one first."""
    if not isinstance(loaded, dict):
        return []
    return [key for key in _ENTRIES if isinstance(loaded.get(key), dict) and _has_tensors(_innermost(loaded[key], tensor)[0], tensor)]


def _innermost(value: Any, tensor: type) -> tuple[Mapping[Any, Any], list[str]]:
    """The dictionary of tensors within nested entries, and the keys that lead to it."""
    keys: list[str] = []
    while isinstance(value, dict) and len(keys) < _MAX_DEPTH:
        inner = next((k for k in _ENTRIES if isinstance(value.get(k), dict) and value[k]), None)
        if inner is None or _has_tensors(value, tensor):
            break
        keys.append(inner)
        value = value[inner]
    return (value if isinstance(value, dict) else {}), keys


def _has_tensors(value: Mapping[Any, Any], tensor: type) -> bool:
    return any(isinstance(v, tensor) for v in value.values())


def _array(name: str, tensor: Any) -> np.ndarray:
    """Converts a dense torch tensor to an array; bfloat16, which numpy lacks, to float32.

    Raises:
      ValueError: The tensor is sparse, quantised, nested, without data, or of a type that numpy
        lacks.
    """
    import torch

    if tensor.is_quantized:
        raise ValueError(f"{name} is quantised; save dequantized weights")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise ValueError(f"{name} is no dense tensor ({tensor.layout}); save it with .to_dense()")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} has no data (device {tensor.device})")
    tensor = tensor.detach().resolve_conj().resolve_neg()  # for Parameters too
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is of type {tensor.dtype}; convert it to float32, float16 or bfloat16") from error

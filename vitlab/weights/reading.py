"""Files of tensors by name, as numpy arrays."""

import pathlib

import numpy as np

_WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema")  # keys under which authors store the tensors


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors`, `.pth`, `.pt` or `.bin` file; `.pth` only as plain tensors, never unpickling code.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Another suffix, a broken file, or a `.pth` that holds no tensors.
      ImportError: A `.pth` without torch; the extra `parity` has it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return _read_torch(path)
    raise ValueError(f"{path.name}: weights are read from .safetensors, .pth, .pt or .bin files")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  # registers bfloat16 with numpy
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: value.astype(np.float32) if value.dtype.kind in "fV" else value for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'{path.name}: reading .pth needs torch; pip install "vitlab[parity]", or convert to .safetensors') from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; none of them is a reason to unpickle
        raise ValueError(f"{path.name} cannot be read as plain tensors (weights_only): {str(error).splitlines()[0]}") from error
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    tensors = {n: t for n, t in loaded.items() if isinstance(t, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors by name")
    return {n: (t.float() if t.is_floating_point() else t).numpy() for n, t in tensors.items()}

"""Reads checkpoint files as numpy arrays by name, without unpickling or executing anything."""

import dataclasses
import json
import math
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vitlab.weights import torch_file
from vitlab.weights.shards import INDEX_SUFFIX, file_of, weight_map

_TORCH = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
_SUFFIXES = (".safetensors", ".npz", *_TORCH)
# Readable types of safetensors and numpy's names of them. Narrower floats need a scale, which no
# name map has.
_READ = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (64, 32, 16)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (64, 32, 16, 8)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (64, 32, 16, 8)},
    "BF16": "bfloat16",
    "BOOL": "?",
}
_GRIDS = "vitlab.grids"  # key of the metadata: JSON of the rows and columns of position tables, by name
_MAX_RATIO, _ALWAYS_ALLOWED = 100, 2**26  # limits of a .npz: unpacked bytes per byte of the file; bytes that are always allowed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of a file, in the file's types, with their origin.

    Those of a safetensors file are read when they are asked for, so that one is in memory at a
    time; the file must not change meanwhile.
    """

    tensors: Mapping[str, np.ndarray]
    origin: str  # file name
    entry: str = ""  # key of the file's dictionary that holds them, or ""
    other_entries: tuple[str, ...] = ()  # other keys that hold weights
    grids: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # stated rows and columns of position tables


def read_checkpoint(path: pathlib.Path, entry: str | None = None) -> Checkpoint:
    """Reads a `.safetensors`, `.npz` or torch file (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`).

    All files of an index are read together.

    Args:
      path: The file, an index of several files, `*.index.json`, or a folder with one of these.
      entry: The key of a torch file's dictionary, such as "model" or "state_dict_ema"; None takes a
        model average if there is one, as timm does.

    Raises:
      FileNotFoundError: The file, or one that the index names, is missing.
      ValueError: The suffix is unknown, the file is damaged, empty, implausibly large when
        unpacked, or has contents other than plain tensors, or there is no such entry.
      ImportError: torch, which reads a `.pth`, is missing; the extra `parity` has it.
    """
    if path.is_dir():
        path = file_of(path, _SUFFIXES)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, entry)
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"{path.name}: weights are read from {', '.join(_SUFFIXES)} files")
    _check_format(path)
    if path.name.endswith(_TORCH):
        tensors, taken, others = torch_file.read(path, entry)
        return Checkpoint(tensors=tensors, origin=path.name, entry=taken, other_entries=others)
    if entry is not None:
        raise ValueError(f"{path.name} has no entries: leave out {entry=}")
    checkpoint = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
    if not checkpoint.tensors:
        raise ValueError(f"{path.name} holds no tensors")
    return checkpoint


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of `read_checkpoint`, with floating-point ones as float32."""
    tensors = read_checkpoint(path).tensors
    return {n: v.astype(np.float32) if is_floating(v) else v for n, v in tensors.items()}


def is_floating(value: np.ndarray) -> bool:
    """Whether an array has real floating-point numbers, bfloat16 included."""
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def grids_metadata(grids: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """The entry of a safetensors file's metadata that states the grids of position tables."""
    return {_GRIDS: json.dumps(grids)} if grids else {}


def _read_shards(index: pathlib.Path, entry: str | None) -> Checkpoint:
    """Reads the tensors of all files in an index, each from the file that the index names."""
    files, homes, grids = weight_map(index), {}, {}
    for file in sorted(set(files.values())):
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index} names {file}, which is not beside it: copy all files of the checkpoint into one folder")
        shard = read_checkpoint(index.parent / file, entry)
        names = [name for name, home in files.items() if home == file]
        if lost := [name for name in names if name not in shard.tensors]:
            raise ValueError(f"{index.name}: {file} lacks {len(lost)} of its tensors, first {lost[0]}")
        homes |= dict.fromkeys(names, shard.tensors)
        grids |= shard.grids
    return Checkpoint(tensors=_Joined(homes), origin=f"{index.name} ({len(set(files.values()))} files)", grids=grids)


def _check_format(path: pathlib.Path) -> None:
    """Refuses a file whose first bytes belong to another format than its suffix."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError(f"{path.name} is an empty file")
    if path.suffix == ".safetensors" and start.startswith(b"PK"):
        raise ValueError(f"{path.name} is a zip archive, as torch.save and numpy.savez write, not a safetensors file: rename it")
    if path.suffix != ".safetensors" and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise ValueError(f"{path.name} is a safetensors file: rename it to .safetensors")
    if path.suffix == ".npz" and not start.startswith(b"PK"):
        raise ValueError(f"{path.name} is no .npz archive")


def _read_safetensors(path: pathlib.Path) -> Checkpoint:
    import ml_dtypes  # noqa: F401  # the import registers bfloat16 with numpy
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # `file` is no mapping
            for name, kind in types.items():
                if kind not in _READ:
                    raise ValueError(f"{path.name}: {name} is of type {kind}; convert it to F32, F16 or BF16")
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from error
    header, start = _header(path)
    places = {
        name: _Place(start + header[name]["data_offsets"][0], np.dtype(_READ[kind]), tuple(header[name]["shape"]))
        for name, kind in types.items()
    }
    return Checkpoint(tensors=_InFile(path, places), origin=path.name, grids=_declared_grids(path.name, metadata))


@dataclasses.dataclass(frozen=True)
class _Place:
    """The place of a tensor in a file; safetensors has checked that it lies inside."""

    offset: int  # bytes
    dtype: np.dtype
    shape: tuple[int, ...]


class _InFile(Mapping[str, np.ndarray]):
    """The tensors of a file, each a view of the file of its own, whose memory goes with it."""

    def __init__(self, path: pathlib.Path, places: Mapping[str, _Place]):
        self._path, self._places = path, places

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        if not math.prod(place.shape):
            return np.zeros(place.shape, place.dtype)
        if self._path.stat().st_size < place.offset + math.prod(place.shape) * place.dtype.itemsize:
            raise ValueError(f"{self._path.name} has become shorter than its header says")
        return np.memmap(self._path, place.dtype, "r", place.offset, place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Joined(Mapping[str, np.ndarray]):
    """The tensors of several files."""

    def __init__(self, homes: Mapping[str, Mapping[str, np.ndarray]]):
        self._homes = homes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._homes[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The header of a file, which safetensors has parsed already, and the byte at which the data
    begins.

    Raises:
      ValueError: It has a name twice, of which safetensors would take one in silence.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'{path.name} has the name "{twice}" twice in its header')
        return dict(pairs)

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size), object_pairs_hook=unique), 8 + size


def _declared_grids(origin: str, metadata: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    try:
        declared = json.loads(metadata.get(_GRIDS, "{}"))
        return {name: (int(rows), int(columns)) for name, (rows, columns) in declared.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{origin}: the metadata {_GRIDS} must be JSON of [rows, columns] by name ({error})") from error


def _read_npz(path: pathlib.Path) -> Checkpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(m.file_size for m in members)
            if unpacked > max(_ALWAYS_ALLOWED, _MAX_RATIO * path.stat().st_size):
                raise ValueError(f"{path.name} would unpack to {unpacked} bytes, more than {_MAX_RATIO} times its size: not read")
            if len({m.filename for m in members}) != len(members):
                raise ValueError(f"{path.name} has a name twice")
            tensors = {m.filename.removesuffix(".npy"): _read_member(archive, m) for m in members}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path.name} is not a whole .npz file: {error}") from error
    return Checkpoint(tensors=tensors, origin=path.name)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array of the archive, after checking the size that its header states."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{member.filename} has version {version} of the format, which is not read")
        shape, _, dtype = readers[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, which are never unpickled")
        size = dtype.itemsize
        for n in shape:
            size *= n
        if size > member.file_size:
            raise ValueError(f"{member.filename} promises {size} bytes and has {member.file_size}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)

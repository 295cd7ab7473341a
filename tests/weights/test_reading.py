"""Weight files are data: one clear error for files that cannot be read safely and wholly."""

import io
import json
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vitlab.weights.reading import read_checkpoint, read_tensors


def header(entries: dict | str, data: bytes = b"") -> bytes:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind: str, shape: list[int], start: int, end: int) -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def npy(value: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, value, **options)
    return file.getvalue()


def archive(path, members: dict[str, bytes] | list[tuple[str, bytes]], compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items() if isinstance(members, dict) else members:
            file.writestr(name, data)
    return path


def test_safetensors_keep_their_types(tmp_path):
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones(2, ml_dtypes.bfloat16), "c": np.ones((2, 2), np.int64)}
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert read.origin == "a.safetensors" and {n: v.dtype.name for n, v in read.tensors.items()} == {
        "a": "float32",
        "b": "bfloat16",
        "c": "int64",
    }
    assert read_tensors(tmp_path / "a.safetensors")["b"].dtype == np.float32


def test_tensors_are_read_when_they_are_asked_for_and_one_at_a_time(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({f"t{i}": np.full(100_000, i, np.float32) for i in range(20)}, path)
    tracemalloc.start()
    tensors = read_checkpoint(path).tensors
    assert sum(float(value[0]) for value in tensors.values()) == sum(range(20)) and len(tensors) == 20
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < path.stat().st_size / 4
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    with pytest.raises(ValueError, match="x.safetensors has become shorter than its header says"):
        dict(tensors)


def test_npz_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **{"Transformer/a": np.arange(6.0).reshape(2, 3)})
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.npz")["Transformer/a"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_narrow_floats_of_safetensors_are_refused_by_name(tmp_path, kind):
    (tmp_path / "a.safetensors").write_bytes(header({"blocks.0.w": entry(kind, [4], 0, 4)}, b"\0" * 4))
    with pytest.raises(ValueError, match=f"blocks.0.w is of type {kind}"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x10", id="a byte"),
        pytest.param(struct.pack("<Q", 2**62) + b"{}", id="a header longer than the file"),
        pytest.param(struct.pack("<Q", 2**31) + b"{}", id="a header of two gigabytes"),
        pytest.param(struct.pack("<Q", 0), id="no header"),
        pytest.param(header("[]"), id="a list"),
        pytest.param(header("{" * 100_000), id="deep nesting"),
        pytest.param(header('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), id="deep lists"),
        pytest.param(header(b"\xff\xfe".decode("latin-1")), id="no JSON"),
        pytest.param(header({"a": entry("F32", [2**40], 0, 2**42)}, b"\0" * 4), id="a shape beyond the file"),
        pytest.param(header({"a": entry("F32", [2**33, 2**33], 0, 4)}, b"\0" * 4), id="a shape that overflows"),
        pytest.param(header({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4), id="a negative shape"),
        pytest.param(header({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"\0" * 4), id="tensors over each other"),
        pytest.param(header({"a": entry("F32", [1], 0, 4)}, b"\0" * 2), id="truncated"),
        pytest.param(header({"a": entry("F32", [1], 0, 4)}, b"\0" * 9), id="bytes after the end"),
        pytest.param(header({"a": entry("Q7", [1], 0, 4)}, b"\0" * 4), id="an unknown type"),
    ],
)
def test_damaged_safetensors_are_one_clear_error(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.safetensors") as error:
        read_checkpoint(tmp_path / "a.safetensors")
    assert len(str(error.value)) < 500


def test_a_name_that_is_twice_in_a_header_is_refused(tmp_path):
    first, second = (json.dumps(entry("F32", [1], i, i + 4)) for i in (0, 4))
    both = f'{{"a": {first}, "a": {second}}}'
    (tmp_path / "a.safetensors").write_bytes(header(both, b"\0" * 8))
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        read_checkpoint(tmp_path / "a.safetensors")
    same = f'{{"a": {first}, "a": {first}}}'
    (tmp_path / "a.safetensors").write_bytes(header(same, b"\0" * 4))
    with pytest.raises(ValueError, match=r'"a" twice|a\.safetensors is not a whole'):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("grids", ["[1]", "{", '{"a": 3}', '{"a": [1, 2, 3]}', '{"a": ["x", 2]}', '{"a": null}'])
def test_a_declared_grid_that_is_none_is_refused(tmp_path, grids):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors", {"vitlab.grids": grids})
    with pytest.raises(ValueError, match=r"vitlab\.grids must be JSON"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_every_prefix_of_a_file_is_refused(tmp_path):
    save_file({"a": np.arange(4, dtype=np.float32), "b": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", a=np.arange(4), b=np.ones(2))
    for name in ("a.safetensors", "a.npz"):
        whole = (tmp_path / name).read_bytes()
        for length in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(ValueError):
                read_checkpoint(tmp_path / name)


def test_npz_with_python_objects_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    np.savez(tmp_path / "a.npz", a=np.array([Evil()], object))
    with pytest.raises(ValueError, match="Python objects, which are never unpickled"):
        read_checkpoint(tmp_path / "a.npz")
    assert not (tmp_path / "made").exists()


def test_an_npz_that_unpacks_to_far_more_is_refused(tmp_path):
    member = npy(np.zeros(2**25, np.float32))  # 128 MiB
    path = archive(tmp_path / "a.npz", {"a.npy": member})
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match="more than 100 times its size"):
        read_checkpoint(path)


def test_an_npz_whose_header_promises_more_than_there_is_is_refused(tmp_path):
    member = npy(np.zeros(4)).replace(b"(4,)", b"(9999999999999,)".ljust(4))
    with pytest.raises(ValueError, match=r"promises|not a whole"):
        read_checkpoint(archive(tmp_path / "a.npz", {"a.npy": member}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_a_name_twice_is_refused(tmp_path):
    members = [("a.npy", npy(np.zeros(2))), ("a.npy", npy(np.ones(2)))]
    with pytest.raises(ValueError, match="has a name twice"):
        read_checkpoint(archive(tmp_path / "a.npz", members))


def test_files_that_are_none_are_refused_with_the_rule(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_checkpoint(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder without weights; they are read from"):
        read_checkpoint(tmp_path / "folder.safetensors")
    (tmp_path / "weights.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match="are read from .safetensors"):
        read_checkpoint(tmp_path / "weights.npy")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="is an empty file"):
        read_checkpoint(tmp_path / "empty.pth")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_a_file_under_another_formats_suffix_is_named(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="is a safetensors file: rename it"):
        read_checkpoint(tmp_path / "a.pth")
    archive(tmp_path / "b.safetensors", {"a.npy": npy(np.zeros(2))})
    with pytest.raises(ValueError, match="is a zip archive"):
        read_checkpoint(tmp_path / "b.safetensors")
    (tmp_path / "c.npz").write_bytes(npy(np.zeros(2)))
    with pytest.raises(ValueError, match="is no .npz archive"):
        read_checkpoint(tmp_path / "c.npz")


def test_a_file_without_entries_takes_none(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has no entries"):
        read_checkpoint(tmp_path / "a.safetensors", "model")


def sharded(folder, names=("a", "b", "c")):
    """A checkpoint of two files and its index."""
    for file, part in (("model-1.safetensors", names[:2]), ("model-2.safetensors", names[2:])):
        save_file({name: np.full(2, ord(name), np.float32) for name in part}, folder / file)
    files = {name: f"model-{1 + (i > 1)}.safetensors" for i, name in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_an_index_and_the_folder_that_has_it_are_read_as_one_checkpoint(tmp_path):
    index = sharded(tmp_path)
    for path in (index, tmp_path):
        read = read_checkpoint(path)
        assert sorted(read.tensors) == ["a", "b", "c"] and read.origin == "model.safetensors.index.json (2 files)"
        assert read.tensors["c"][0] == ord("c")


def test_a_folder_of_one_file_is_read_and_one_of_several_is_asked_which(tmp_path):
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert list(read_checkpoint(tmp_path).tensors) == ["a"]
    save_file({"b": np.ones(1, np.float32)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=r"several files of weights: name one of x.safetensors, y.safetensors"):
        read_checkpoint(tmp_path)
    save_file({"c": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    assert list(read_checkpoint(tmp_path).tensors) == ["c"]


def test_an_index_that_promises_what_is_not_there_is_refused(tmp_path):
    index = sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-2.safetensors, which is not beside it"):
        read_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "z": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-1.safetensors lacks 1 of its tensors, first z"):
        read_checkpoint(index)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b.safetensors"}}',
     '{"weight_map": {"a": "/etc/b.safetensors"}}', '{"weight_map": {"a": "model.safetensors.index.json"}}'],
)  # fmt: skip
def test_an_index_that_is_none_or_leads_elsewhere_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=r"no index of tensors|names no tensors|must be in a file beside the index"):
        read_checkpoint(index)

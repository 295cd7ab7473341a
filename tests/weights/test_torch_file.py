"""Files of torch.save: plain tensors under any usual wrapper, and never unpickled code."""

import argparse
import pickle
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")

from vitlab.weights.reading import read_checkpoint, read_tensors  # noqa: E402


@pytest.fixture
def saved(tmp_path):
    def save(value, name="a.pth", **options):
        torch.save(value, tmp_path / name, **options)
        return tmp_path / name

    return save


def one() -> torch.Tensor:
    return torch.ones(2)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "a.pth.tar"])
def test_every_usual_suffix_is_read(saved, name):
    np.testing.assert_array_equal(read_tensors(saved({"a": one()}, name))["a"], np.ones(2))


def test_the_format_before_archives_is_read(saved):
    np.testing.assert_array_equal(read_tensors(saved({"a": one()}, _use_new_zipfile_serialization=False))["a"], np.ones(2))


def test_parameters_and_halves_are_tensors_like_others(saved):
    path = saved({"a": torch.nn.Parameter(one()), "b": one().bfloat16(), "c": torch.nn.Parameter(one().half()), "d": one().double()})
    read = read_checkpoint(path).tensors
    assert {n: v.dtype.name for n, v in read.items()} == {"a": "float32", "b": "float32", "c": "float16", "d": "float64"}


@pytest.mark.parametrize(
    ("value", "entry", "others"),
    [
        ({"a": 1}, "", ()),
        ({"state_dict": {"a": 1}, "epoch": 3, "arch": "x"}, "state_dict", ()),
        ({"model": {"a": 0}, "model_ema": {"a": 1}}, "model_ema", ("model",)),
        ({"state_dict": {"a": 0}, "state_dict_ema": {"a": 1}}, "state_dict_ema", ("state_dict",)),
        ({"state_dict": {"a": 1}, "state_dict_ema": None}, "state_dict", ()),
        ({"model": {"a": 1}, "model_ema": {}}, "model", ()),
        ({"model": {"a": 1}, "optimizer": {"state": {0: {"step": 2}}}}, "model", ()),
        ({"student": {"a": 0}, "teacher": {"a": 1}}, "teacher", ("student",)),
        ({"ema": {"decay": 0.9, "module": {"a": 1}}, "model": {"a": 0}}, "ema/module", ("model",)),
    ],
)
def test_the_average_is_taken_and_the_others_are_named(saved, value, entry, others):
    def tensors(tree):
        return {k: tensors(v) if isinstance(v, dict) else torch.full((2,), float(v)) if k == "a" else v for k, v in tree.items()}

    read = read_checkpoint(saved(tensors(value)))
    np.testing.assert_array_equal(read.tensors["a"], np.ones(2))
    assert (read.entry, read.other_entries) == (entry, others)


def test_an_entry_is_taken_by_name(saved):
    path = saved({"model": {"a": torch.zeros(2)}, "model_ema": {"a": one()}})
    read = read_checkpoint(path, "model")
    assert read.tensors["a"].max() == 0 and read.entry == "model" and read.other_entries == ("model_ema",)
    with pytest.raises(ValueError, match='no entry "state_dict" of tensors; it has: model_ema, model'):
        read_checkpoint(path, "state_dict")


def test_the_authors_arguments_are_read_and_nothing_else(saved, tmp_path):
    arguments = argparse.Namespace(lr=1e-3, model="vit")
    assert read_checkpoint(saved({"model": {"a": one()}, "args": arguments})).entry == "model"

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(ValueError, match="weights_only"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match=r"weights_only.*torch.nn.modules.linear.Linear"):
        read_checkpoint(saved(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (lambda: torch.eye(3).to_sparse(), "no dense tensor"),
        (lambda: torch.eye(3).to_sparse_csr(), "no dense tensor"),
        (lambda: torch.quantize_per_tensor(one(), 0.1, 0, torch.qint8), "is quantised"),
        (lambda: one().to(torch.float8_e4m3fn), "is of type torch.float8_e4m3fn"),
        (lambda: torch.empty(2, device="meta"), "no data|weights_only"),
        (lambda: torch.zeros(1).expand(10**9), "more than the file has bytes"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensors_without_plain_numbers_are_refused_by_name(saved, tensor, reason):
    with pytest.raises(ValueError, match=reason) as error:
        read_checkpoint(saved({"model": {"blocks.0.w": tensor()}}))
    assert "a.pth" in str(error.value) and "\n" not in str(error.value)


def test_many_views_of_one_number_are_refused(saved):
    number = torch.zeros(64)
    with pytest.raises(ValueError, match="more numbers than the file has bytes"):
        read_checkpoint(saved({f"w{i}": number.expand(16, 64) for i in range(64)}))


@pytest.mark.parametrize("value", [{}, {"model": {}}, [one()], one(), {"epoch": 3}, {3: one()}, None])
def test_a_file_without_tensors_by_name_is_refused(saved, value):
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_checkpoint(saved(value))


def test_a_compressed_archive_is_not_unpacked(saved, tmp_path):
    path = saved({"a": torch.zeros(2**20)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**16
    with pytest.raises(ValueError, match="which torch.save never writes: not unpacked"):
        read_checkpoint(tmp_path / "bomb.pth")


def test_a_program_of_torch_is_never_run(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="TorchScript program, which is never run"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_truncated_file_is_one_clear_error(saved):
    path = saved({"a": torch.arange(300.0)})
    whole = path.read_bytes()
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pth"):
            read_checkpoint(path)

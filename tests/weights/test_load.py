"""Reading foreign checkpoints: nothing is skipped silently, nothing half-loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from vitlab import create_model, load_weights
from vitlab.weights.load import WeightsMismatchError
from vitlab.weights.reading import read_tensors

FIELDS = {"depth": 1, "dim": 16, "num_heads": 2, "num_classes": 5, "image_size": 32}


def vit(**fields):
    return create_model("vit_tiny_patch16", **(FIELDS | fields))


def foreign(model) -> dict[str, np.ndarray]:
    """The model's parameters under timm's names and in torch's layout."""
    out = {}
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, array = ".".join(map(str, path)), np.asarray(value[...])
        if path[-1] == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        out[name.replace(".kernel", ".weight").replace(".scale", ".weight")] = np.ascontiguousarray(array)
    return out


def params(model):
    return {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def test_safetensors_round_trip(tmp_path):
    source = vit(rngs=nnx.Rngs(3))
    save_file(foreign(source), tmp_path / "vit.safetensors")
    model = vit()
    report = load_weights(model, tmp_path / "vit.safetensors")
    assert not report.missing and not report.unexpected and len(report.loaded) == len(params(model))
    for name, value in params(model).items():
        np.testing.assert_array_equal(value, params(source)[name])


def test_bfloat16_tensors_become_float32(tmp_path):
    tensors = {n: v.astype(jnp.bfloat16) for n, v in foreign(vit(rngs=nnx.Rngs(3))).items()}
    save_file(tensors, tmp_path / "vit.safetensors")
    model = vit()
    load_weights(model, tmp_path / "vit.safetensors")
    assert {v.dtype for v in params(model).values()} == {np.dtype("float32")}


def test_strict_names_what_does_not_fit_and_leaves_the_model_alone():
    tensors = foreign(vit(num_classes=7, rngs=nnx.Rngs(3)))
    tensors["extra.weight"] = np.zeros(3, np.float32)
    del tensors["norm.bias"]
    model = vit()
    before = params(model)
    with pytest.raises(WeightsMismatchError) as error:
        load_weights(model, tensors)
    for part in ("missing: norm.bias", "unexpected: extra.weight", "head.kernel: checkpoint (7, 16), model (16, 5)"):
        assert part in str(error.value)
    for name, value in params(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_not_strict_loads_the_rest_for_a_new_head():
    source = vit(num_classes=7, rngs=nnx.Rngs(3))
    model = vit()
    report = load_weights(model, foreign(source), strict=False)
    assert {m.split(":")[0] for m in report.mismatched} == {"head.kernel", "head.bias"}
    np.testing.assert_array_equal(params(model)["blocks.0.attn.qkv.kernel"], params(source)["blocks.0.attn.qkv.kernel"])


def test_position_embedding_is_resampled_to_the_models_size():
    model = vit(image_size=(48, 64))
    report = load_weights(model, foreign(vit(rngs=nnx.Rngs(3))))
    assert report.resampled == ("pos_embed",)
    assert np.isfinite(model(jnp.zeros((1, 48, 64, 3)))).all()


def test_relative_position_tables_are_resampled_to_the_models_window():
    fields = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 3}
    tensors = foreign(create_model("swin_tiny", window_size=7, **fields))
    names = [n for n in tensors if n.endswith("rel_pos_bias")]
    report = load_weights(create_model("swin_tiny", window_size=8, **fields), tensors)
    assert sorted(report.resampled) == sorted(names)


def test_the_authors_swin_has_its_merging_one_stage_earlier():
    fields = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 3}
    source = create_model("swin_tiny", rngs=nnx.Rngs(3), **fields)
    tensors = {}
    for name, value in foreign(source).items():
        name = name.replace("layers.1.downsample", "layers.0.downsample")
        if name.endswith("rel_pos_bias"):
            name, value = name.replace("rel_pos_bias", "relative_position_bias_table"), value.reshape(value.shape[0], -1).T
        tensors[name] = value
    tensors["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((49, 49), np.int64)
    model = create_model("swin_tiny", **fields)
    report = load_weights(model, tensors)
    assert len(report.ignored) == 1
    x = jax.random.normal(jax.random.key(0), (1, 56, 56, 3))
    np.testing.assert_array_equal(model(x), source(x))


def test_bad_files_are_refused_with_the_rule(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_tensors(tmp_path / "absent.safetensors")
    (tmp_path / "weights.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match="are read from .safetensors"):
        read_tensors(tmp_path / "weights.npy")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "cut.safetensors")


def test_pth_is_read_as_plain_tensors_and_never_unpickled(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    torch.save({"model": {"a.weight": torch.ones(2)}}, tmp_path / "a.pth")
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.pth")["a.weight"], np.ones(2))
    torch.save({"model": pytest.approx}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="weights_only"):
        read_tensors(tmp_path / "evil.pth")


def test_pth_without_torch_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"vitlab\[parity\]"):
        read_tensors(tmp_path / "a.pth")

"""Reading of others' checkpoints: nothing is skipped silently or half-loaded."""

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
    """Returns the model's parameters under timm's names and in torch's layout."""
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


@pytest.mark.parametrize(
    ("wrap", "prefixes"),
    [
        (lambda n: f"module.{n}", ("module.",)),
        (lambda n: f"model.{n}", ("model.",)),
        (lambda n: f"module.model.{n}", ("module.model.",)),
        (lambda n: f"_orig_mod.{n}", ("_orig_mod.",)),
        (lambda n: f"module._orig_mod.{n}", ("module.", "_orig_mod.")),
        (lambda n: n.replace("blocks.0.", "blocks.0._orig_mod."), ("_orig_mod.",)),
        (lambda n: n if n.startswith("head") else f"backbone.{n}", ("backbone.",)),
        (lambda n: f"encoder.{n}", ("encoder.",)),
    ],
)
def test_what_wrappers_put_before_names_is_found_and_removed(wrap, prefixes):
    source = vit(rngs=nnx.Rngs(3))
    model = vit()
    report = load_weights(model, {wrap(n): v for n, v in foreign(source).items()})
    assert report.prefixes == prefixes and len(report.loaded) == len(params(model))
    for name, value in params(model).items():
        np.testing.assert_array_equal(value, params(source)[name])


def test_counters_of_wrappers_are_passed_over():
    tensors = {f"module.{n}": v for n, v in foreign(vit()).items()} | {"n_averaged": np.zeros((), np.int64)}
    assert load_weights(vit(), tensors).ignored == ("n_averaged",)


def test_two_tensors_for_one_parameter_are_refused():
    tensors = foreign(vit())
    tensors["module.norm.bias"] = tensors["norm.bias"]
    with pytest.raises(WeightsMismatchError, match="unexpected: module.norm.bias"):
        load_weights(vit(), tensors)
    swin = create_model("swin_tiny", dim=8, depths=(1,), num_heads=(1,), num_classes=3)
    tensors = {f"head.{part}": v for part, v in (("weight", np.zeros((3, 8), np.float32)), ("fc.weight", np.ones((3, 8), np.float32)))}
    report = load_weights(swin, tensors, strict=False)
    assert report.mismatched == ("head.kernel: several tensors: head.weight, head.fc.weight",)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named_and_refused(value):
    tensors = foreign(vit()) | {"norm.bias": np.array([0.0] * 15 + [value])}
    model = vit()
    with pytest.raises(WeightsMismatchError, match="nonfinite: norm.bias") as error:
        load_weights(model, tensors)
    assert error.value.report.nonfinite == ("norm.bias",)
    assert np.isfinite(params(model)["norm.bias"]).all()
    assert load_weights(model, tensors, strict=False).nonfinite == ("norm.bias",)


@pytest.mark.parametrize("kind", [np.complex64, np.bool_, np.int8])
def test_other_than_real_floating_point_numbers_are_refused(kind):
    tensors = foreign(vit()) | {"norm.bias": np.zeros(16, kind)}
    with pytest.raises(WeightsMismatchError, match=f"norm.bias: numbers of type {np.dtype(kind)}"):
        load_weights(vit(), tensors)


@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 16), (1, 1, 16), (1, 2, 16), (5, 16), (1, 5, 16, 1)])
def test_a_position_embedding_without_a_grid_is_one_clear_error(shape):
    with pytest.raises(WeightsMismatchError, match="mismatched: pos_embed: "):
        load_weights(vit(), foreign(vit()) | {"pos_embed": np.zeros(shape, np.float32)})


def test_the_report_says_where_everything_is_from(tmp_path):
    tensors = {f"module.{n}": v for n, v in foreign(vit(image_size=64)).items()}
    save_file(tensors, tmp_path / "vit.safetensors")
    report = load_weights(vit(), tmp_path / "vit.safetensors")
    assert (report.source, report.name_map, report.prefixes) == ("vit.safetensors", "timm", ("module.",))
    for part in (
        "source: vit.safetensors",
        "names: those of timm",
        "prefixes removed: module.",
        "resampled: pos_embed: 4 x 4 to 2 x 2 positions, bicubic with antialiasing; the checkpoint's are taken to be a square",
    ):
        assert part in str(report)


@pytest.mark.parametrize("classes", [7, 5, 0])
def test_a_new_head_leaves_the_trunk_strict(classes):
    source = vit(num_classes=7, rngs=nnx.Rngs(3))
    model, before = vit(num_classes=classes), params(vit(num_classes=classes))
    report = load_weights(model, foreign(source), head="new")
    heads = {"head.kernel", "head.bias"} if classes else set()
    assert set(report.new_head) == heads and set(report.ignored) == {"head.weight", "head.bias"}
    for name, value in params(model).items():
        np.testing.assert_array_equal(value, before[name] if name in heads else params(source)[name])
    for change in ({"norm.bias": None}, {"norm.bias": np.zeros(3, np.float32)}, {"extra": np.zeros(3, np.float32)}):
        tensors = {n: v for n, v in (foreign(source) | change).items() if v is not None}
        for head in ("new", "fit"):
            with pytest.raises(WeightsMismatchError, match="norm.bias|extra"):
                load_weights(vit(num_classes=classes), tensors, head=head)


def test_a_head_is_loaded_where_it_fits():
    source = vit(rngs=nnx.Rngs(3))
    model = vit()
    assert not load_weights(model, foreign(source), head="fit").new_head
    np.testing.assert_array_equal(params(model)["head.kernel"], params(source)["head.kernel"])
    assert set(load_weights(vit(num_classes=7), foreign(source), head="fit").new_head) == {"head.kernel", "head.bias"}
    headless = {n: v for n, v in foreign(source).items() if not n.startswith("head")}
    assert set(load_weights(vit(), headless, head="fit").new_head) == {"head.kernel", "head.bias"}


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


def test_an_entry_is_named_after_the_file_or_as_an_argument(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    raw, average = (vit(rngs=nnx.Rngs(seed)) for seed in (3, 4))
    entries = {key: {n: torch.tensor(v) for n, v in foreign(m).items()} for key, m in (("model", raw), ("model_ema", average))}
    path = tmp_path / "a.pth"
    torch.save(entries, path)
    for source, options, expected in ((path, {}, average), (f"{path}#model", {}, raw), (path, {"entry": "model"}, raw)):
        model = vit()
        report = load_weights(model, source, **options)
        np.testing.assert_array_equal(params(model)["norm.scale"], params(expected)["norm.scale"])
        np.testing.assert_array_equal(params(model)["head.kernel"], params(expected)["head.kernel"])
        assert report.source == ("a.pth#model" if expected is raw else "a.pth#model_ema")
    assert "a.pth#model; it also has model_ema, named as file#entry" in str(report)
    with pytest.raises(ValueError, match="name two entries"):
        load_weights(vit(), f"{path}#model", entry="model_ema")
    path.rename(tmp_path / "a#b.pth")
    assert load_weights(vit(), tmp_path / "a#b.pth").source == "a#b.pth#model_ema"


def test_pth_without_torch_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"vitlab\[parity\]"):
        read_tensors(tmp_path / "a.pth")

"""An exported model runs without this project, and gives the model's outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export as jax_export
from safetensors import safe_open

from tests.models.conftest import size_of, small
from tests.train.conftest import tiny_experiment, uninterrupted  # noqa: F401  the run that is exported
from vitlab import create_model, load_weights
from vitlab.config import ConfigError, Experiment
from vitlab.export import __main__ as command
from vitlab.export.onnx import to_onnx
from vitlab.export.stablehlo import to_stablehlo
from vitlab.functional import functional
from vitlab.models.registry import family_of, list_models
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import Trained, from_run
from vitlab.train.loop import train
from vitlab.weights.save import save_weights, to_foreign

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # logits are float32 of size one, and the two programs add in different orders
FIELDS = {"depth": 1, "dim": 16, "num_heads": 2, "num_classes": 5, "image_size": 32}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Returns a small network's checkpoint under the name of a variant of the zoo."""
    from vitlab.models import vit
    from vitlab.models.registry import Family, _families

    config = vit.ViTConfig(dim=16, depth=1, num_heads=2, image_size=(32, 32))
    monkeypatch.setitem(_families(), "vit_small_test", Family(vit.ViT, {"vit_small_test": config}, {}))
    model = create_model("vit_small_test", num_classes=5, rngs=nnx.Rngs(3))
    save_weights(model, tmp_path / "source.safetensors")
    return model, f"--weights={tmp_path / 'source.safetensors'}"


def images(number, size=32, channels=3):
    return np.random.default_rng(number).integers(0, 256, (number, size, size, channels), dtype=np.uint8)


def expected(trained, pixels):
    return jax.jit(trained.model.apply)(trained.weights, pixels)[0]


def test_a_runs_safetensors_hold_its_weights_in_timms_names_and_its_preprocessing(uninterrupted, tmp_path, capsys):  # noqa: F811
    output = tmp_path / "model.safetensors"
    assert command.main([f"--workdir={uninterrupted}", "--format=safetensors", f"--output={output}"]) == 0
    assert "step 60" in capsys.readouterr().out
    trained = from_run(uninterrupted, make_mesh())
    parts = (trained.weights["params"], trained.weights["model_state"], trained.model.constants)
    model = nnx.merge(trained.model.graphdef, *parts, copy=True)
    weights = to_foreign(model)
    with safe_open(output, framework="np") as file:
        assert set(file.keys()) == set(weights) and "blocks.0.attn.qkv.weight" in weights
        header = json.loads(file.metadata()["vitlab"])
    load_weights(model, output)
    beside = json.loads((tmp_path / "model.json").read_text())
    assert beside == {**header, "format": "safetensors"}
    assert (beside["model"], beside["step"], beside["classes"]) == ("vit_tiny_patch16", 60, list(trained.class_names))
    recipe = trained.model.preprocessing
    assert (beside["mean"], beside["std"], beside["interpolation"]) == (list(recipe.mean), list(recipe.std), recipe.interpolation)
    assert beside["image_size"] == list(recipe.image_size)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_runs_stablehlo_takes_any_number_of_pictures(uninterrupted, tmp_path):  # noqa: F811
    output = tmp_path / "model.stablehlo"
    assert command.main([f"--workdir={uninterrupted}", "--format=stablehlo", f"--output={output}"]) == 0
    program = jax_export.deserialize(bytearray(output.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    trained = from_run(uninterrupted, make_mesh())
    beside = json.loads((tmp_path / "model.json").read_text())
    for number in (1, 3):
        pixels = images(number, beside["image_size"][0], beside["channels"])
        logits = program.call(pixels)
        assert logits.shape == (number, len(beside["classes"])) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected(trained, pixels), **TOLERANCE)


def test_averaged_weights_are_exported_unless_told_otherwise(tmp_path):
    train(tiny_experiment(ema_decay=0.8, duration="8 steps", eval_every="8 steps"), tmp_path / "run")
    files = {}
    for name, arguments in (("average", []), ("raw", ["--raw"])):
        output = tmp_path / f"{name}.safetensors"
        assert command.main([f"--workdir={tmp_path}/run", "--format=safetensors", f"--output={output}", *arguments]) == 0
        with safe_open(output, framework="np") as file:
            files[name] = file.get_tensor("head.weight")
        trained = from_run(tmp_path / "run", make_mesh(), raw=name == "raw")
        np.testing.assert_array_equal(files[name], trained.weights["params"]["head"]["kernel"].T)
        assert (json.loads(output.with_suffix(".json").read_text()).get("weights") == "averaged") == (name == "average")
    assert np.abs(files["average"] - files["raw"]).max() > 0


def test_a_checkpoint_of_others_is_exported(file, tmp_path):
    model, weights = file
    for form in ("safetensors", "stablehlo"):
        arguments = ["--model=vit_small_test", weights, "--num_classes=5", f"--format={form}", f"--output={tmp_path / f'out.{form}'}"]
        assert command.main(arguments) == 0
    again = create_model("vit_small_test", num_classes=5)
    load_weights(again, tmp_path / "out.safetensors")
    pixels = images(2)
    mean, std = (np.asarray(v, np.float32) for v in (model.preprocessing.mean, model.preprocessing.std))
    logits = again(jnp.asarray((pixels / 255 - mean) / std, jnp.float32))
    program = jax_export.deserialize(bytearray((tmp_path / "out.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(pixels), logits, **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=safetensors"], "say either --workdir"),
        (["--format=safetensors", "--workdir=x", "--model=vit_tiny_patch16", "--weights=y"], "say either --workdir"),
        (["--format=safetensors", "--model=vit_tiny_patch16"], "say either --workdir"),
        (["--format=safetensors", "--model=vit_tiny_patch16", "--weights=y", "--raw"], "--raw and --step"),
        (["--format=safetensors", "--workdir=x", "--num_classes=3"], "a run has its own"),
        (["--format=safetensors", "--model=vit_tiny_patch16", "--weights=y", "--num_classes=-1"], "must be at least 0"),
        (["--format=safetensors", "--model=vit_tiny_patch16", "--weights=y", "--image_size=(0,64)"], r"must be in \[1"),
        (["--format=safetensors", "--model=vit_tiny_patch16", "--weights=/none.safetensors"], "no weights file"),
        (["--format=safetensors", "--model=vit_tiny", "--weights=y"], "unknown model"),
        (["--format=safetensors", "--workdir=/none"], "/none"),
        (["--format=gguf", "--workdir=x"], "invalid choice"),
        (["--format=stablehlo", "--workdir=x", "--batch_size=2"], "--batch_size is of onnx"),
        (["--format=onnx", "--workdir=x", "--batch_size=0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        command.main([*arguments, f"--output={tmp_path / 'out'}"])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(tmp_path):
    for output in (tmp_path, tmp_path / "none" / "a", tmp_path / "a.json"):
        with pytest.raises(ConfigError, match="--output="):
            command.main(["--workdir=/none", "--format=safetensors", f"--output={output}"])


def test_onnx_runs_in_another_runtime(file, tmp_path):
    pytest.importorskip("jax2onnx", reason="jax2onnx is in the extra `onnx`")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")
    output = tmp_path / "out.onnx"
    arguments = ["--model=vit_small_test", file[1], "--num_classes=5", "--format=onnx", "--batch_size=2"]
    assert command.main([*arguments, f"--output={output}"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["output"] == "float32 [2, classes], logits"
    session = runtime.InferenceSession(output)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images(2)})
    mean, std = (np.asarray(v, np.float32) for v in (file[0].preprocessing.mean, file[0].preprocessing.std))
    np.testing.assert_allclose(logits, file[0](jnp.asarray((images(2) / 255 - mean) / std, jnp.float32)), **TOLERANCE)


def test_onnx_without_its_converter_says_where_to_get_it(file, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    arguments = ["--model=vit_small_test", file[1], "--num_classes=5", "--format=onnx", f"--output={tmp_path / 'out.onnx'}"]
    with pytest.raises(ConfigError, match=r"vitlab\[onnx\]"):
        command.main(arguments)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny", "nextvit_small", "maxvit_tiny"])
def test_onnx_serves_windows_and_convolutions(name):
    pytest.importorskip("jax2onnx", reason="jax2onnx is in the extra `onnx`")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")
    trained = _small(name)
    session = runtime.InferenceSession(to_onnx(trained, 2))
    pixels = images(2, trained.model.preprocessing.image_size[0])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_allclose(logits, expected(trained, pixels), **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({family_of(n).model: n for n in list_models()}.values()))
def test_every_family_is_a_program_for_any_number_of_images(name):
    trained = _small(name)
    program = jax_export.deserialize(bytearray(to_stablehlo(trained)))
    for number in (1, 3):
        pixels = images(number, trained.model.preprocessing.image_size[0])
        np.testing.assert_allclose(program.call(pixels), expected(trained, pixels), **TOLERANCE)


def _small(name):
    fn, weights = functional(small(name, image_size=size_of(name)))
    return Trained(model=fn, weights=weights, experiment=Experiment(), channels=3, class_names=(), origin={"model": name})

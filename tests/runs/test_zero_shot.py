"""Zero-shot classification by two towers of one file, tiny and random."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from tests.weights.test_tokenizer import SIZE, files  # noqa: F401
from vitlab import create_model, predict
from vitlab.config import ConfigError, DataConfig, Experiment, ModelConfig
from vitlab.evaluate import __main__ as evaluate
from vitlab.models import text_tower
from vitlab.models.text_tower import TextConfig, TextTower
from vitlab.runs.loaded import LoadedRun, one_device
from vitlab.runs.zero_shot import read_templates, zero_shot
from vitlab.weights.load import load_weights, parameters
from vitlab.weights.save import to_foreign

TEXT = TextConfig(dim=16, depth=2, num_heads=2, out_dim=6, vocab_size=SIZE, length=12, activation="quick_gelu")
FIELDS = {"dim": 16, "depth": 1, "num_heads": 2, "image_size": 32, "num_classes": 6}
SCALE = 7.0
NAMES = ("the cat", "dog")


def towers():
    image = create_model("clip_base_patch16", rngs=nnx.Rngs(1), **FIELDS)
    text = TextTower(TEXT, rngs=nnx.Rngs(2))
    for name, value in {**parameters(image), **parameters(text)}.items():
        value.set_value(value[...] * 10 if name.endswith("kernel") else value[...])
    return image, text


def renamed(tensors, rules):
    out = {}
    for name, value in tensors.items():
        for old, new in rules:
            name = name.replace(old, new)
        out[name] = np.ascontiguousarray(value)
    return out


def both(image, text):
    """A file of OpenCLIP: OpenAI's names of the text tower around an image tower of timm."""
    words = renamed(to_foreign(image), [("", "")])
    visual = {f"visual.trunk.{n}" if not n.startswith("head") else n.replace("head", "visual.head.proj"): v for n, v in words.items()}
    return visual | renamed(to_foreign(text), [("", "")]) | {"logit_scale": np.array(np.log(SCALE), np.float32)}


@pytest.fixture
def checkpoint(files, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(text_tower.VARIANTS, "clip_base", TEXT)
    image, text = towers()
    save_file(both(image, text), tmp_path / "model.safetensors")
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for j in range(3):
            pixels = np.random.default_rng(10 * i + j).integers(0, 256, (40, 60, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{j}.png")
    return tmp_path


def experiment(root=None):
    data = (
        DataConfig(source="image_folder", data_dir=str(root / "photos"), train_split="train", eval_split="train") if root else DataConfig()
    )
    fields = {n: v for n, v in FIELDS.items() if n not in ("image_size", "num_classes")}
    return Experiment(model=ModelConfig(name="clip_base_patch16", image_size=32, fields=fields), data=data)


def test_logits_are_the_scaled_cosines_with_the_mean_of_each_classs_prompts(checkpoint, monkeypatch):
    monkeypatch.setattr("vitlab.runs.trained.create_model", lambda name, **o: create_model(name, **(FIELDS | o | {"num_classes": 6})))
    templates = ("a photo of {}", "{}")
    path = str(checkpoint / "model.safetensors")
    trained = zero_shot(
        "clip_base_patch16", path, experiment(), NAMES, one_device(), templates=templates, vocabulary=checkpoint / "vocab.json"
    )
    run = LoadedRun(trained)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    image, text = towers()
    from vitlab.weights.tokenizer import read_tokenizer

    def length_one(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    tokens = read_tokenizer(checkpoint / "vocab.json", TEXT)
    vectors = [length_one(np.asarray(text(jnp.asarray(tokens([t.replace("{}", n) for t in templates]))))) for n in NAMES]
    classes = length_one(np.stack([v.mean(0) for v in vectors]))
    mean, std = (np.float32(v) for v in (image.preprocessing.mean, image.preprocessing.std))
    expected = SCALE * length_one(np.asarray(image(jnp.asarray((pixels / np.float32(255) - mean) / std, jnp.float32)))) @ classes.T
    np.testing.assert_allclose(run.logits(pixels), expected, atol=2e-5)  # float32 sums in another order
    assert run.class_names == NAMES and trained.origin["templates"] == 2


def test_the_commands_need_no_run(checkpoint, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("vitlab.runs.trained.create_model", lambda name, **o: create_model(name, **(FIELDS | o | {"num_classes": 6})))
    (tmp_path / "names.txt").write_text("the cat\nthe dog\n")
    (tmp_path / "templates.txt").write_text("a photo of {}\n{}!\n")
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.runs.test_zero_shot import experiment\nfrom vitlab.config import to_config_dict\nimport pathlib\n"
        f"def get_config():\n    return to_config_dict(experiment(pathlib.Path({str(tmp_path)!r})))\n"
    )
    towers_of = ["--model=clip_base_patch16", f"--weights={tmp_path}/model.safetensors"]
    words = [f"--classes={tmp_path}/names.txt", f"--templates={tmp_path}/templates.txt"]
    assert evaluate.main([*towers_of, *words, "--protocol=zero_shot", f"--config={config}", "--config.eval_batch_size=6"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 6 and result["protocol"] == "zero_shot" and 0 <= result["top1"] <= 1
    fields = ["--config.model.image_size=32"]
    assert predict.main([*towers_of, *words, *fields, f"{tmp_path}/photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18 and {line.split("%  ")[1] for line in lines if "%" in line} == {"the cat", "the dog"}


def test_files_that_do_not_fit_are_refused_with_tensor_and_remedy(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("vitlab.runs.trained.create_model", lambda name, **o: create_model(name, **(FIELDS | o | {"num_classes": 6})))
    image, text = towers()
    tensors = both(image, text)

    def run(changed, vocabulary=tmp_path / "vocab.json"):
        save_file(changed, tmp_path / "changed.safetensors")
        zero_shot("clip_base_patch16", str(tmp_path / "changed.safetensors"), experiment(), NAMES, one_device(), vocabulary=vocabulary)

    with pytest.raises(ConfigError, match="missing: norm.scale"):
        run({n: v for n, v in tensors.items() if n != "ln_final.weight"})
    with pytest.raises(ConfigError, match="changed.safetensors has no logit_scale"):
        run({n: v for n, v in tensors.items() if n != "logit_scale"})
    with pytest.raises(ConfigError, match="no vocabulary at"):
        run(tensors, tmp_path / "none.json")
    with pytest.raises(ConfigError, match="changed.safetensors has no text tower, token_embedding.weight.*: take the file that has both"):
        run({n: v for n, v in tensors.items() if n.startswith(("visual", "logit"))})
    (tmp_path / "alone").mkdir()
    save_file(tensors, tmp_path / "alone" / "model.safetensors")
    with pytest.raises(ConfigError, match="no vocabulary beside .*model.safetensors: name it, one of tokenizer.json"):
        zero_shot("clip_base_patch16", str(tmp_path / "alone" / "model.safetensors"), experiment(), NAMES, one_device())


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (evaluate, ["--workdir=x", "--protocol=zero_shot"], "needs a checkpoint with a text tower: --model=NAME"),
        (evaluate, ["--workdir=x", "--templates=y"], "are of --protocol=zero_shot"),
        (predict, ["--model=clip_base_patch16", "--weights=x", "a.png"], "knows no classes: say --classes=FILE"),
        (predict, ["--model=swin_tiny", "--weights=x", "--tokenizer=y", "a.png"], "are of models with a text tower"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(command, arguments, words):
    with pytest.raises(ConfigError, match=words):
        command.main(arguments)


def test_a_template_has_one_place_for_the_class(tmp_path):
    (tmp_path / "t.txt").write_text("a photo of {}\na photo\n")
    with pytest.raises(ConfigError, match='the line "a photo" must have {} once'):
        read_templates(tmp_path / "t.txt")
    assert read_templates(None) == ("a photo of a {}.",)


def small_text(seed=0):
    return TextTower(TEXT, rngs=nnx.Rngs(seed))


def equal(model, source):
    for name, value in parameters(source).items():
        np.testing.assert_array_equal(parameters(model)[name][...], value[...], err_msg=name)


def test_openclips_names_of_a_text_tower_are_read():
    source, model = small_text(3), small_text()
    tensors = {f"text.{n}": v for n, v in to_foreign(source).items()} | {"visual.trunk.x": np.zeros(2, np.float32)}
    report = load_weights(model, tensors)
    assert report.name_map == "mlfoundations/open_clip" and report.ignored == ("visual.trunk.x",)
    equal(model, source)


def test_big_visions_text_tower_of_stacked_blocks_is_read():
    source, model = small_text(3), small_text()
    values = {n: np.asarray(v[...]) for n, v in parameters(source).items()}
    out = {"Embed_0/embedding": values["token_embed.embedding"], "pos_embedding": values["pos_embed"] - 1}
    out |= {"Encoder_0/pos_embedding": np.ones_like(values["pos_embed"])}  # early files have a second table
    out |= {f"Encoder_0/encoder_norm/{n}": values[f"norm.{n}"] for n in ("scale", "bias")}
    out |= {f"head/{n}": values[f"head.{n}"] for n in ("kernel",)}
    heads, start = TEXT.num_heads, "Encoder_0/encoderblock"
    for i in (0, 1):
        out |= {f"{start}/LayerNorm_{i}/{n}": stacked(values, f"norm{i + 1}.{n}") for n in ("scale", "bias")}
        out |= {f"{start}/MlpBlock_0/Dense_{i}/{n}": stacked(values, f"mlp.fc{i + 1}.{n}") for n in ("kernel", "bias")}
    attention = f"{start}/MultiHeadDotProductAttention_0"
    for j, name in enumerate(("query", "key", "value")):
        kernel, bias = (np.split(stacked(values, f"attn.qkv.{n}"), 3, -1)[j] for n in ("kernel", "bias"))
        out |= {f"{attention}/{name}/kernel": kernel.reshape(2, 16, heads, -1), f"{attention}/{name}/bias": bias.reshape(2, heads, -1)}
    out[f"{attention}/out/kernel"] = stacked(values, "attn.proj.kernel").reshape(2, heads, -1, 16)
    out[f"{attention}/out/bias"] = stacked(values, "attn.proj.bias")
    tensors = {f"params/txt/{n}": v for n, v in out.items()} | {"params/t": np.zeros(1, np.float32), "params/b": np.zeros(1, np.float32)}
    report = load_weights(model, tensors | {"params/img/head/kernel": np.zeros((2, 2), np.float32)})
    assert report.name_map == "google-research/big_vision" and len(report.ignored) == 3
    for name, value in values.items():
        np.testing.assert_allclose(parameters(model)[name][...], value, atol=1e-6, err_msg=name)


def stacked(values, name):
    return np.stack([values[f"blocks.{i}.{name}"] for i in range(TEXT.depth)])


def test_the_classifier_is_exported_with_the_classes_inside(checkpoint, monkeypatch):
    monkeypatch.setattr("vitlab.runs.trained.create_model", lambda name, **o: create_model(name, **(FIELDS | o | {"num_classes": 6})))
    from vitlab.export.stablehlo import predictor

    path = str(checkpoint / "model.safetensors")
    trained = zero_shot("clip_base_patch16", path, experiment(), NAMES, one_device(), vocabulary=checkpoint / "whole")
    shape = jax.eval_shape(predictor(trained), jax.ShapeDtypeStruct((5, 32, 32, 3), np.uint8))
    assert shape.shape == (5, 2)

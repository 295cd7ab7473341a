"""Parts of a user's own, from a package and from a file, in every command and process."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.train.conftest import config_file, tiny_experiment
from vitlab import cli, create_model, plugins
from vitlab.config import AugmentConfig, ConfigError, DataConfig, LossConfig, ModelConfig, from_config_dict
from vitlab.config.references import absolute, load_reference
from vitlab.data.source import open_source
from vitlab.functional import build
from vitlab.layers.initial import InitRngs
from vitlab.models.registry import abstract_model
from vitlab.runs import folder
from vitlab.runs.trained import model_of_run
from vitlab.train.setup import set_up

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "tests" / "plugin"
PARTS, MODELS = (f"{PACKAGE}/ownlab/{name}.py" for name in ("parts", "models"))
EVERYTHING = """
import json, sys
from vitlab import cli
from vitlab.evaluate import __main__ as evaluate
from vitlab.models import __main__ as models
from vitlab.plan import __main__ as plan
from vitlab import predict
run, config, image = sys.argv[1:]
assert evaluate.main([f"--workdir={run}"]) == 0
assert predict.main([f"--workdir={run}", image]) == 0
assert plan.main([f"--config={config}", "--topology=cpu"]) == 0
assert models.main(["ownlab.models:small"]) == 0
"""


def experiment(**changes):
    experiment = tiny_experiment(
        model=ModelConfig(name="ownlab.models:wide", fields={"dim": 16}),
        data=DataConfig(source="ownlab.parts:open_stripes", num_threads=1, num_workers=1),
        augment=AugmentConfig(crop="pad", pad=0, flip=False),
        loss=LossConfig(kind="ownlab.parts:focal"),
        metrics=("ownlab.parts:likelihood",),
        duration="30 steps",
        eval_every="15 steps",
        checkpoint_every="15 steps",
    )
    return dataclasses.replace(experiment, **changes)


def python(*arguments, cwd, path=PACKAGE, timeout=300):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def test_a_package_of_one_s_own_is_trained_with_workers_evaluated_predicted_and_planned_elsewhere(tmp_path):
    config, run = config_file(tmp_path, experiment()), tmp_path / "run"
    code, _, errors = python("-m", "vitlab", "train", f"--config={config}", f"--workdir={run}", cwd=tmp_path)
    assert code == 0, errors
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["step"] == 30 and last["eval_top1"] > 0.9 and 0.5 < last["eval_likelihood"] <= 1
    assert json.loads((run / "config.json").read_text())["model"]["name"] == "ownlab.models:wide"
    Image.fromarray(np.asarray(load_reference(f"{PARTS}:Stripes")(8)[3]["image"][..., 0])).save(tmp_path / "a.png")
    (tmp_path / "elsewhere").mkdir()
    code, out, errors = python("-c", EVERYTHING, run, config, tmp_path / "a.png", cwd=tmp_path / "elsewhere")
    assert code == 0, errors
    result = json.loads(out.splitlines()[0])
    assert result["likelihood"] == pytest.approx(last["eval_likelihood"], rel=1e-4)
    assert out.splitlines()[2].endswith("along") and "ownlab.models:small" in out
    code, _, errors = python("-m", "vitlab.predict", f"--workdir={run}", "a.png", cwd=tmp_path, path="nowhere")
    assert code == 2 and "there is no module ownlab; install it, or add its folder to PYTHONPATH" in errors
    assert len(errors.splitlines()) == 1


def test_a_file_is_recorded_by_its_absolute_path_wherever_it_is_named(monkeypatch):
    monkeypatch.chdir(PACKAGE / "ownlab")
    fields = {"mixers": "window, ./parts.py:Shift", "mixer_fields": {"parts.py:Shift": {"tokens": 2}}}
    own = experiment(
        model=ModelConfig(name="./models.py:wide", fields=fields),
        data=DataConfig(source="parts.py:open_stripes"),
        loss=LossConfig(kind="../ownlab/parts.py:focal"),
        metrics=("parts.py:likelihood",),
    )
    assert own.model.name == f"{MODELS}:wide" and own.model.fields["mixers"] == f"window,{PARTS}:Shift"
    assert (own.data.source, own.loss.kind, own.metrics) == (f"{PARTS}:open_stripes", f"{PARTS}:focal", (f"{PARTS}:likelihood",))
    assert cli.override(own, {"model.name": "models.py:small"}).model.name == f"{MODELS}:small"


def test_a_mixer_from_a_file_mixes_in_a_stage_of_the_trunk():
    fields = {"depths": (1, 1), "dims": (16, 32), "num_heads": (2, 2), "mixers": f"{PARTS}:Shift,global"}
    model = create_model("metaformer_nano", image_size=32, num_classes=3, mixer_fields={"Shift": {"tokens": 3}}, **fields)
    mixer = model.stages[0].blocks[0].mixer
    assert type(mixer).__name__ == "Shift" and mixer.tokens == 3
    assert model(jnp.ones((1, 32, 32, 3))).shape == (1, 3)


def test_what_is_made_of_a_file_unpickles_in_a_process_that_never_saw_the_file(tmp_path):
    import cloudpickle

    source = open_source(DataConfig(source=f"{PARTS}:open_stripes"), train=False)
    (tmp_path / "source").write_bytes(cloudpickle.dumps(source))
    code = "import pickle, sys; source = pickle.load(open('source', 'rb')); print(source.name_of(len(source)))"
    assert python("-c", code, cwd=tmp_path, path="nowhere")[:2] == (0, "stripes/20\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.name": "ownlabb.models:wide"}, "there is no module ownlabb; install it, or add its folder to PYTHONPATH"),
        ({"model.name": "/no/such/file.py:wide"}, "there is no file /no/such/file.py; put it there, or name another"),
        ({"model.name": f"{MODELS}:wid"}, 'has no variant "wid": did you mean wide'),
        ({"model.name": f"{PARTS}:wide"}, "must define FAMILY"),
        ({"model.dim": "3"}, "dim=3 must be even"),
        ({"loss.kind": f"{PARTS}:focl"}, 'has no "focl": did you mean focal'),
        ({"loss.kind": "focal"}, "must be one of 'softmax', 'sigmoid', or a part of your own"),
        ({"loss.kind": f"{PARTS}:Shift.__call__"}, "must be one of"),
        ({"loss.kind": "json:loads"}, "loads"),
        ({"metrics": f"('{PARTS}:focal', '{PARTS}:focal')"}, "has the name of another result, focal"),
        ({"metrics": "('accuracy',)"}, "metrics='accuracy' must be a part of your own"),
        ({"data.source": "imagefolder"}, "did you mean image_folder"),
        ({"data.source": f"{PARTS}:focal"}, "focal"),
    ],
)
def test_a_part_that_is_not_there_or_does_not_fit_is_said(change, words, monkeypatch):
    own = experiment(
        model=ModelConfig(name=f"{MODELS}:wide", fields={"dim": 16}),
        data=DataConfig(source=f"{PARTS}:open_stripes"),
        loss=LossConfig(kind=f"{PARTS}:focal"),
        metrics=(),
    )
    with pytest.raises((ConfigError, TypeError), match=words.replace("(", r"\(")) as caught:
        set_up(cli.override(own, change))
    if isinstance(caught.value, TypeError):  # the user's function raises it, with a traceback
        assert words in str(caught.value)


def faulty(folder, body, name="Net"):
    text = pathlib.Path(MODELS).read_text().replace("        self.config = config\n", f"        self.config = config\n        {body}\n")
    (folder / "faulty.py").write_text(text)
    return f"{folder}/faulty.py:small"


@pytest.mark.parametrize(
    ("body", "raises"),
    [
        ("int('abc')", ValueError),
        ("from vitlab.mixers import MIXERS; MIXERS['window'](7, num_heads=2, rngs=rngs)", ValueError),
        ("{}['key']", KeyError),
        ("from vitlab.config import ConfigError; raise ConfigError('dim is too small')", ConfigError),
    ],
)
def test_what_their_code_raises_keeps_its_traceback_unless_it_is_a_config_error(body, raises, tmp_path):
    with pytest.raises(raises) as caught:
        build(ModelConfig(name=faulty(tmp_path, body)), num_classes=2, channels=1, seed=0)
    assert (type(caught.value) is ConfigError) == (raises is ConfigError)
    assert any(entry.path.name == "faulty.py" for entry in caught.traceback)


def test_what_their_code_raises_ends_a_command_with_code_1_and_their_line(tmp_path):
    name = faulty(tmp_path, "int('abc')")
    own = experiment(model=ModelConfig(name=name), data=DataConfig(train_split="train[:64]", eval_split="test[:20]"), metrics=())
    code, _, errors = python("-m", "vitlab.train", f"--config={config_file(tmp_path, own)}", "--workdir=run", cwd=tmp_path)
    assert code == 1 and "faulty.py" in errors and "int('abc')" in errors and "ValueError: invalid literal" in errors
    assert not (tmp_path / "run").exists()


def test_a_module_that_fails_on_import_keeps_its_traceback(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_reference(f"{tmp_path}/broken.py:Net")


def test_errors_of_vitlab_s_own_code_are_not_taken_for_theirs():
    with pytest.raises(ValueError) as caught:
        create_model("vit_tiny_patch16", image_size=30)
    assert not plugins.raised_in_plugin(caught.value)


def plain_layers(rngs):
    return nnx.List(
        [
            nnx.Linear(4, 4, rngs=rngs),
            nnx.Conv(3, 4, (3, 3), rngs=rngs),
            nnx.Embed(5, 4, rngs=rngs),
            nnx.LayerNorm(4, rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
            nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.LoRA(4, 2, 4, rngs=rngs),
        ]
    )


def test_plain_flax_layers_have_values_that_follow_from_the_seed():
    one, again, other = (nnx.state(plain_layers(InitRngs(seed)), nnx.Param) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one[0]["kernel"][...], other[0]["kernel"][...])
    kernels = [one[0]["kernel"][...], one[5]["query"]["kernel"][...].reshape(4, 4)]
    assert not np.array_equal(*kernels)  # each draw is new
    wide = nnx.Linear(256, 256, rngs=InitRngs(3)).kernel[...]
    assert float(wide.std()) == pytest.approx(1 / 16, rel=0.03)  # LeCun's deviation, estimated from 65536 draws


def test_plain_flax_layers_can_be_made_of_shapes_alone():
    shapes = nnx.eval_shape(lambda: plain_layers(InitRngs(None)))
    assert shapes[0].kernel.shape == (4, 4)


def test_layers_under_vmap_get_values_of_their_own():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.Linear(3, 3, rngs=rngs)

    kernels = make(InitRngs(0).split(2)).kernel[...]
    assert not np.array_equal(kernels[0], kernels[1])


def test_dropout_and_batch_norm_of_flax_follow_the_run_s_mode_and_step():
    model, create = build(ModelConfig(name=f"{MODELS}:wide"), num_classes=2, channels=1, seed=0)
    weights, images = create(), np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    apply = jax.jit(model.apply)
    evaluated = [apply(weights, images)[0] for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    trained = [apply(weights, images, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(trained[0][0], trained[1][0])
    assert not np.array_equal(trained[0][0], trained[2][0]) and not np.array_equal(trained[0][0], evaluated[0])
    mean = trained[0][1]["norm"]["mean"]
    assert not np.array_equal(mean, weights["model_state"]["norm"]["mean"])
    np.testing.assert_array_equal(apply(weights, images)[1]["norm"]["mean"], weights["model_state"]["norm"]["mean"])


def test_a_run_of_a_model_of_one_s_own_can_teach_until_its_file_has_gone(tmp_path):
    (tmp_path / "own.py").write_text(pathlib.Path(MODELS).read_text())
    info = folder.DataInfo(fingerprint="", num_examples=64, channels=1, class_names=("across", "along"))
    taught = experiment(model=ModelConfig(name=f"{tmp_path}/own.py:small"))
    with folder.claim(tmp_path, taught, info) as claim:
        folder.write(claim, taught, info)
    model, own, data = model_of_run(tmp_path)
    assert model.shapes["params"]["head"]["kernel"].shape == (16, 2) and own.loss.kind == "ownlab.parts:focal" and data == info
    (tmp_path / "own.py").unlink()
    with pytest.raises(ConfigError, match=r"there is no file \S+own.py; put it there, or name another \(a run has the name in its config"):
        model_of_run(tmp_path)


def test_a_model_of_a_file_is_created_like_one_of_the_zoo():
    assert abstract_model(f"{MODELS}:small", num_classes=3, in_channels=1, dim=12).head.kernel.shape == (24, 3)
    with pytest.raises(ValueError, match='no field "dimm": did you mean dim'):
        create_model(f"{MODELS}:small", dimm=3)


def test_config_json_of_a_run_with_a_file_loads_in_any_folder(tmp_path, monkeypatch):
    own = from_config_dict({"model": {"name": f"{MODELS}:small"}})
    monkeypatch.chdir(tmp_path)
    assert own.model.name == absolute(own.model.name) == f"{MODELS}:small"

"""A user's mistakes: one line on stderr, exit code 2, nothing left behind."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.processes import SECONDS
from tests.train.conftest import config_file, start, tiny_experiment
from vitlab import cli, predict
from vitlab.config import AugmentConfig
from vitlab.evaluate import __main__ as evaluate
from vitlab.train import __main__ as train

ROOT = pathlib.Path(__file__).parents[1]


def run(main, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    return exit_.value.code, capsys.readouterr().err


FOLDER = ["--config.data.source=image_folder", "--config.data.data_dir={images}", "--config.data.eval_split=train"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=none.py"], "there is no config file none.py"),
        (["--config=vitlab:quickstrat"], 'vitlab has no recipe "quickstrat": did you mean quickstart'),
        (["--config.optimizer.peek_lr=1"], "unknown key optimizer.peek_lr: did you mean peak_lr"),
        (["--config.optimzer.peak_lr=1"], "unknown key optimzer: did you mean optimizer"),
        (["--config.batch_size=1.5"], "batch_size=1.5 must be int"),
        (["--config.batch_size"], "has no value"),
        (["--config.duration=soon"], 'duration "soon"'),
        (["--config.optimizer.warmup=99 epochs"], "the whole run only 60"),
        (["--config.model.name=vit_tin_patch16"], 'unknown model "vit_tin_patch16": did you mean vit_tiny_patch16'),
        (["--config.model.dept=3"], 'no field "dept": did you mean depth'),
        (["--config.model.image_size=30"], "multiples of"),
        (["--config.model.implementation=cudnn"], "cannot be trained so"),
        (["--config.model.num_classes=3"], "fewer than the 10 classes"),
        (["--config.data.train_split=trian"], "did you mean train"),
        (["--nonsense=1"], "unrecognized arguments: --nonsense=1"),
        (["--config.duration=1.2.3 epochs"], 'duration "1.2.3 epochs" must be a number and a unit'),
        (["--config.duration=1e400 epochs"], "the number at most 1e+15"),
        (["--config.duration=1e14 epochs"], "and must be at most 2,147,483,647"),
        (["--config.seed=-1"], "seed=-1 must be in [0, "),
        (["--config.seed=18446744073709551616"], "seed=<an integer of 65 bits> must be int in [0, "),
        (["--config.model.in_channels=4"], "model.in_channels=4 must be 1 or 3, unless data.files declares image=... channels=4"),
        (["--config.model.in_channels=0"], "model.in_channels=0 must be in [1, "),
        (["--config.model.image_size=-28"], "model.image_size=-28 must be in [1, "),
        (["--config.augment.pad=-1"], "augment.pad=-1 must be in [0, "),
        (["--config.augment.crop_ratio=(0,0)"], "each entry must be in [0.01, 100]"),
        (["--config.data.num_workers=-2"], "data.num_workers=-2 must be in [0, "),
        (["--config.keep_every=0 steps"], 'keep_every="0 steps" must be longer than 0'),
        (["--config.optimizer.groups={[]:1}"], "optimizer.groups='{[]:1}' must be a tuple"),
        (["--config.optimizer={'peak_lr':1}"], "--config.optimizer is a group: set its keys one by one"),
        (["--config.batch_size.x=1"], "batch_size is a value, not a group"),
        (["--config.=1"], "unknown key"),
        (["--config.warmup=1 epochs"], "unknown key warmup: did you mean optimizer.warmup?"),
        (["--config.model.img_size=28"], 'no field "img_size": it is image_size here'),
        (["--config.optimizer.groups=('(',)"], "optimizer group"),
        (["--config.loss.distillation.teacher=" + "x" * 3000], "is no run folder"),
        (["--config.model.weights=" + "x" * 3000], "model.weights"),
        (["--config.model.weights=hf://"], "model.weights"),
        ([*FOLDER[:1], "--config.data.data_dir=" + "x" * 3000], "data"),
        (["--config.model.name="], "unknown model"),
        (["--config.data.train_split="], "split"),
        (["--config.data.eval_split=test[9999999999999999999999:]"], "is empty"),
        (FOLDER, "image"),
        ([*FOLDER, "one class"], "class"),
    ],
)
def test_bad_input_of_train_is_one_line_and_leaves_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    images = tmp_path / "images"
    (images / "train").mkdir(parents=True)
    if "one class" in arguments:
        (images / "train" / "cat").mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / "train" / "cat" / "a.png")
    arguments = [a.replace("{images}", str(images)) for a in arguments if a != "one class"]
    config = [] if arguments[0].startswith("--config=") else [f"--config={config_file(tmp_path, tiny_experiment())}"]
    code, errors = run(train.main, [*config, f"--workdir={tmp_path}/run", *arguments], monkeypatch, capsys)
    assert code == 2 and words in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["quickstart", "vit_imagenet:small_patch16"])
def test_a_recipe_of_the_package_is_the_file_of_its_name(name):
    file, _, variant = name.partition(":")
    path = f"{ROOT}/configs/{file}.py" + (variant and f":{variant}")
    assert cli.load_experiment(f"vitlab:{name}", {"seed": "3"}) == cli.load_experiment(path, {"seed": "3"})


def test_a_workdir_that_is_not_writable_is_one_line(tmp_path, monkeypatch, capsys):
    config = config_file(tmp_path, tiny_experiment())
    code, errors = run(train.main, [f"--config={config}", f"--workdir={config}/run"], monkeypatch, capsys)
    assert code == 2 and errors == f"error: the run folder {config}/run is not writable: Not a directory\n"


def test_a_batch_that_does_not_divide_over_the_devices_is_one_line(tmp_path):
    process = start(config_file(tmp_path, tiny_experiment(batch_size=18)), tmp_path / "run", num_devices=4)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert errors == "error: batch_size=18 must be a multiple of the 4 devices, such as 16\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (evaluate.main, ["--workdir={tmp}"], "is no run folder"),
        (evaluate.main, [], "say either --workdir=DIR, or --model"),
        (evaluate.main, ["--model=swin_tiny", "--weights=x.pth"], "--model needs --config"),
        (evaluate.main, ["--model=swin_tny", "--weights=x.pth", "--config={config}"], "did you mean swin_tiny"),
        (evaluate.main, ["--model=vit_tiny_patch16", "--weights={tmp}/x.safetensors", "--config={config}"], "x.safetensors"),
        (predict.main, ["--workdir={tmp}", "a.png"], "is no run folder"),
        (predict.main, ["--workdir={tmp}"], "there is no image to look at"),
    ],
)
def test_bad_input_of_the_other_commands_is_one_line(main, arguments, words, tmp_path, monkeypatch, capsys):
    arguments = [a.format(tmp=tmp_path, config=config_file(tmp_path, tiny_experiment())) for a in arguments]
    code, errors = run(main, arguments, monkeypatch, capsys)
    assert code == 2 and words in errors and len(errors.splitlines()) == 1


def test_a_command_whose_reader_has_gone_says_nothing():
    code = "from vitlab import cli; cli.run(lambda argv: print('x') or 0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == ""
    assert process.wait() == cli.EXIT_BROKEN_PIPE


def test_overrides_take_the_type_of_the_field(tmp_path):
    texts = {
        "batch_size": "8",
        "optimizer.peak_lr": "1",
        "optimizer.clip_norm": "None",
        "augment.crop_scale": "(0.5, 1)",
        "augment.flip": "false",
        "data.data_dir": "/a=b",
        "data.train_split": "train[:10]",
        "model.num_registers": "4",
    }
    experiment = cli.load_experiment(str(config_file(tmp_path, tiny_experiment())), texts)
    assert (experiment.batch_size, experiment.optimizer.peak_lr, experiment.optimizer.clip_norm) == (8, 1.0, None)
    assert experiment.augment == dataclasses.replace(tiny_experiment().augment, crop_scale=(0.5, 1.0), flip=False)
    assert isinstance(experiment.augment, AugmentConfig)
    assert (experiment.data.data_dir, experiment.data.train_split) == ("/a=b", "train[:10]")
    assert experiment.model.fields["num_registers"] == 4


@pytest.mark.parametrize("environment", [{"HOME": ""}, {"HOME": "relative"}, {"HOME": "/tmp", "XDG_CACHE_HOME": "relative"}])
def test_without_a_home_there_is_no_compilation_cache(environment, monkeypatch):
    import jax

    before = jax.config.values["jax_compilation_cache_dir"]
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cli._use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == before
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])  # a user without an entry, as in containers
    cli._use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == before


@pytest.mark.parametrize("kind", ["a file", "checkpoints is a file", "no text", "empty"])
def test_a_run_folder_that_cannot_be_one_is_one_line(kind, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / ("run" if kind != "no text" else os.fsdecode(b"\xffrun"))
    if kind == "a file":
        workdir.write_text("mine")
    elif kind == "checkpoints is a file":
        workdir.mkdir()
        (workdir / "checkpoints").write_text("mine")
    config = config_file(tmp_path, tiny_experiment())
    code, errors = run(train.main, [f"--config={config}", f"--workdir={workdir if kind != 'empty' else ''}"], monkeypatch, capsys)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and errors[:-1].isprintable()
    if kind != "empty":
        for main, arguments in ((evaluate.main, []), (predict.main, ["a.png"])):
            code, errors = run(main, [f"--workdir={workdir}", *arguments], monkeypatch, capsys)
            assert code == 2 and errors.count("\n") == 1 and errors[:-1].isprintable()


def test_the_compilation_cache_is_the_users_unless_one_is_named(monkeypatch, tmp_path):
    import jax

    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    try:
        cli._use_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "vitlab" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

"""Images that are wider than high pass every command as squares do."""

import json

import pytest
from PIL import Image

from tests.train.conftest import config_file, tiny_experiment
from vitlab import benchmark, preview
from vitlab.config import ConfigError
from vitlab.evaluate import __main__ as evaluate
from vitlab.plan import __main__ as plan
from vitlab.train import __main__ as train

WIDE = "--config.model.image_size=(28,56)"
TINY = ["--model=vit_tiny_patch16", "--field", "dim=16", "--field", "depth=1", "--field", "num_heads=2", "--batch_size=2"]


@pytest.fixture
def config(tmp_path):
    experiment = tiny_experiment(duration="4 steps", eval_every="4 steps", checkpoint_every="4 steps")
    return f"--config={config_file(tmp_path, experiment)}"


def test_a_run_on_wide_images_trains_resumes_and_is_evaluated(config, tmp_path, capsys):
    assert train.main([config, f"--workdir={tmp_path}/run", WIDE]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["image_size"] == [28, 56]
    assert train.main([config, f"--workdir={tmp_path}/run", WIDE]) == 0
    capsys.readouterr()
    assert evaluate.main([f"--workdir={tmp_path}/run"]) == 0
    recorded = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads(capsys.readouterr().out)["top1"] == recorded["eval_top1"]


def test_a_square_by_its_two_sides_is_the_run_of_its_side(config, tmp_path):
    assert train.main([config, f"--workdir={tmp_path}/run"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["image_size"] == 28
    assert train.main([config, f"--workdir={tmp_path}/run", "--config.model.image_size=(28,28)"]) == 0


def test_the_plan_and_the_input_take_wide_images(config, tmp_path, capsys):
    assert plan.main([config, "--topology=cpu", WIDE]) == 0
    assert preview.main([config, WIDE, f"--output={tmp_path}/sheet.png", "--images=1"]) == 0
    assert "56 x 28 pixels" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_a_model_is_timed_on_wide_images(capsys):
    assert benchmark.main([*TINY, "--image_size=(32,64)"]) == 0
    assert "32x64" in capsys.readouterr().out
    for size in ("(32,64,3)", "wide", "0"):
        with pytest.raises(ConfigError, match="image_size"):
            benchmark.main([*TINY, f"--image_size={size}"])

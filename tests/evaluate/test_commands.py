import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.processes import run_on_four_devices
from tests.train.conftest import config_file, tiny_experiment
from vitlab.config import ConfigError
from vitlab.evaluate import __main__ as evaluate
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import from_run
from vitlab.train.loop import train
from vitlab.tree import leaf_names


def test_a_run_folder_is_evaluated_as_training_did(uninterrupted, capsys):
    assert evaluate.main([f"--workdir={uninterrupted}"]) == 0
    result = json.loads(capsys.readouterr().out)
    recorded = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[-1])
    assert (result["step"], result["images"], result["model"]) == (60, 50, "vit_tiny_patch16")
    assert result["top1"] == recorded["eval_top1"] and result["loss"] == pytest.approx(recorded["eval_loss"], rel=1e-6)
    assert json.loads((uninterrupted / "evaluation.json").read_text()) == result


def test_other_data_and_batch_sizes_can_be_given(uninterrupted, capsys):
    assert evaluate.main([f"--workdir={uninterrupted}", "--config.data.eval_split=test[:30]", "--config.eval_batch_size=7"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 30


def test_of_a_run_that_averages_its_weights_the_average_is_evaluated_unless_told_otherwise(tmp_path, capsys):
    train(tiny_experiment(ema_decay=0.8, duration="8 steps", eval_every="8 steps"), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert recorded["eval_loss"] != recorded["eval_average_loss"]
    capsys.readouterr()
    for arguments, prefix in (([], "eval_average_"), (["--raw"], "eval_")):
        assert evaluate.main([f"--workdir={tmp_path}/run", *arguments]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["loss"] == pytest.approx(recorded[prefix + "loss"], rel=1e-6)
        assert ("weights" in result) == (not arguments)


def test_the_best_step_was_kept_and_evaluates_as_recorded(uninterrupted, capsys):
    lines = map(json.loads, (uninterrupted / "metrics.jsonl").read_text().splitlines())
    scores = {line["step"]: line["eval_top1"] for line in lines if "eval_top1" in line}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert evaluate.main([f"--workdir={uninterrupted}", f"--step={best}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["step"], result["top1"]) == (best, scores[best])
    with pytest.raises(ConfigError, match=r"there is no checkpoint of step 1 in .*; steps: 60, "):
        evaluate.main([f"--workdir={uninterrupted}", "--step=1"])


SPLIT = """
import sys
from vitlab.evaluate import __main__ as command
from vitlab.parallel.mesh import share_of_device

def evaluate(step, weights, *arguments, evaluate=command.evaluate, **options):
    print(share_of_device(weights), file=sys.stderr)
    return evaluate(step, weights, *arguments, **options)

command.evaluate = evaluate
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("tensor", "words"), [(2, None), (3, "mesh.fsdp=1 times mesh.tensor=3 does not divide the 4 devices here")])
def test_parameters_are_split_as_in_training_where_the_devices_allow_it(uninterrupted, tensor, words):
    arguments = [f"--workdir={uninterrupted}", "--config.eval_batch_size=8", f"--config.mesh.tensor={tensor}"]
    done = run_on_four_devices(SPLIT, *arguments)
    recorded = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[-1])
    result, share = json.loads(done.stdout), float(done.stderr.splitlines()[-1])
    assert (result["images"], result["top1"]) == (50, recorded["eval_top1"])
    assert result["loss"] == pytest.approx(recorded["eval_loss"], rel=1e-5)
    assert share == 1 and words in done.stderr if words else share < 0.7


def timm_tensors(params):
    """Returns the tree of parameters under timm's names and in torch's layout."""
    import jax

    out = {}
    for name, leaf in zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True):
        order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim) if name.endswith("kernel") else None
        out[name.replace("/", ".").replace("kernel", "weight").replace("scale", "weight")] = np.ascontiguousarray(
            leaf if order is None else leaf.transpose(order)
        )
    return out


def test_a_checkpoint_of_others_is_evaluated_on_the_configs_data(uninterrupted, tmp_path, capsys):
    trained = from_run(uninterrupted, make_mesh())
    save_file(timm_tensors(trained.weights["params"]), tmp_path / "model.safetensors")
    config = config_file(tmp_path, tiny_experiment())
    arguments = ["--model=vit_tiny_patch16", f"--weights={tmp_path}/model.safetensors", f"--config={config}"]
    assert evaluate.main([*arguments, "--config.model.in_channels=1"]) == 0
    result = json.loads(capsys.readouterr().out)
    recorded = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["images"] == 50 and result["top1"] == recorded["eval_top1"]

import dataclasses
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from tests.evaluate.test_commands import timm_tensors
from tests.processes import SECONDS
from tests.train.conftest import config_file, start, tiny_experiment
from vitlab.analysis.counts import count_macs
from vitlab.analysis.devices import peak_flops
from vitlab.config import ConfigError, MeshConfig
from vitlab.losses import LOSSES
from vitlab.models.registry import abstract_model
from vitlab.parallel.mesh import make_mesh, sharded_shapes
from vitlab.runs.checkpoint import NonFiniteError
from vitlab.runs.trained import from_run
from vitlab.train.loop import _share, train
from vitlab.train.profile import window_of
from vitlab.train.setup import set_up

# Sums over 4 devices are taken in another order; measured 2e-6 over 50 steps.
DEVICES_TOLERANCE = 1e-4


def records(workdir, name):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_the_loss_falls_on_64_fixed_images(tmp_path):
    experiment = tiny_experiment(
        augment=dataclasses.replace(tiny_experiment().augment, pad=0, flip=False),
        duration="200 steps",
        optimizer=dataclasses.replace(tiny_experiment().optimizer, peak_lr=1e-2),
        eval_every="200 steps",
    )
    train(experiment, tmp_path / "run")
    losses = list(records(tmp_path / "run", "train_loss").values())
    assert losses[0] > 2 and losses[-1] < 0.7


def test_the_train_step_is_compiled_exactly_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        train(tiny_experiment(duration="9 steps", eval_every="3 steps"), tmp_path / "run")
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Finished XLA compilation")]
    for function in ("train_step", "eval_step"):
        assert sum(f"jit({function})" in message for message in compiled) == 1, compiled


def test_four_devices_follow_the_loss_of_one(tmp_path):
    experiment = tiny_experiment(duration="50 steps", log_every="1 steps", eval_batch_size=20)
    process = start(config_file(tmp_path, experiment), tmp_path / "four", num_devices=4)
    train(experiment, tmp_path / "one")
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert "on 4 x cpu" in output
    one, four = (list(records(tmp_path / n, "train_loss").values()) for n in ("one", "four"))
    assert len(one) == 50
    np.testing.assert_allclose(four, one, rtol=0, atol=DEVICES_TOLERANCE)


def test_four_devices_that_split_parameters_both_ways_and_a_resumed_run_on_other_axes_follow_the_loss_of_one(tmp_path):
    optimizer = dataclasses.replace(tiny_experiment().optimizer, schedule="constant")  # a constant rate, so that the end may move
    wide = dataclasses.replace(tiny_experiment().model, fields={"patch_size": 14, "dim": 128, "depth": 1, "num_heads": 2})
    experiment = tiny_experiment(
        model=wide,
        optimizer=optimizer,
        duration="20 steps",
        log_every="1 steps",
        eval_every="20 steps",
        eval_batch_size=20,
        ema_decay=0.9,
        accumulation=2,
    )
    split = dataclasses.replace(experiment, mesh=MeshConfig(fsdp=2, tensor=2), duration="12 steps")
    process = start(config_file(tmp_path, split), tmp_path / "run", num_devices=4)
    train(experiment, tmp_path / "one")
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert re.search(r"on 4 x cpu, fsdp 2 by tensor 2: each has \d\d% of the state; compiled", output)
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "12" / "manifest" / "metadata").read_text())["leaves"]
    assert manifest["params/blocks/0/mlp/fc1/kernel"]["shape"] == [128, 512]  # above the floor of fsdp, so it was split
    train(experiment, tmp_path / "run", allow_changes=True)
    one, run = ({name: records(tmp_path / n, name) for name in ("train_loss", "eval_average_loss")} for n in ("one", "run"))
    assert len(run["train_loss"]) == 20
    for name in one:
        common = sorted(one[name].keys() & run[name].keys())
        np.testing.assert_allclose([run[name][s] for s in common], [one[name][s] for s in common], rtol=0, atol=DEVICES_TOLERANCE)


def test_a_run_begins_with_the_weights_of_a_checkpoint_and_a_new_head(tmp_path, uninterrupted, caplog):
    trained = from_run(uninterrupted, make_mesh())
    save_file(timm_tensors(trained.weights["params"]), tmp_path / "model.safetensors")
    model = dataclasses.replace(tiny_experiment().model, in_channels=1, num_classes=12, weights=str(tmp_path / "model.safetensors"))
    state = set_up(tiny_experiment(model=model)).initial_state()
    begun, given = (params["blocks"][1]["mlp"]["fc1"]["kernel"] for params in (state["params"], trained.weights["params"]))
    np.testing.assert_array_equal(begun, given)
    assert state["params"]["head"]["kernel"].shape == (16, 12) and "begins anew" in caplog.text
    wider = dataclasses.replace(model, fields={**model.fields, "dim": 32})
    with pytest.raises(
        ConfigError, match="does not fit the model: 30 tensors, first blocks.0.attn.proj.bias: checkpoint .16,., model .32,."
    ):
        set_up(tiny_experiment(model=wider))
    with pytest.raises(ConfigError, match="model.weights: "):
        set_up(tiny_experiment(model=dataclasses.replace(model, weights=str(tmp_path / "none.safetensors"))))


def test_a_resumed_run_no_longer_needs_the_weights_that_it_began_with(tmp_path, uninterrupted):
    weights = tmp_path / "model.safetensors"
    save_file(timm_tensors(from_run(uninterrupted, make_mesh()).weights["params"]), weights)
    experiment = tiny_experiment(model=dataclasses.replace(tiny_experiment().model, in_channels=1, weights=str(weights)))
    result = train(experiment, tmp_path / "run")
    weights.unlink()
    assert train(experiment, tmp_path / "run") == result
    with pytest.raises(ConfigError, match="model.weights: "):
        train(experiment, tmp_path / "another")


def test_a_share_of_all_says_why_nothing_is_split():
    small = sharded_shapes({"bias": jax.ShapeDtypeStruct((8,), jnp.float32)}, make_mesh())
    assert _share(small).startswith("100% (mesh.fsdp splits arrays of at least 65,536 numbers")


def test_devices_that_cannot_be_split_so_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"mesh.fsdp=3 times mesh.tensor=1 must divide the 1 devices"):
        train(tiny_experiment(mesh=MeshConfig(fsdp=3)), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_after(tmp_path):
    optimizer = dataclasses.replace(tiny_experiment().optimizer, peak_lr=1e30, warmup="0 steps", clip_norm=None)
    experiment = tiny_experiment(optimizer=optimizer, checkpoint_every="1 steps")
    with pytest.raises(
        NonFiniteError, match=r"^step \d+: .*gradient of blocks/0/attn/proj/bias .* learning rate 9.99e\+29, gradient norm nan"
    ):
        train(experiment, tmp_path / "run")
    saved = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert all(step < 5 for step in saved)
    with pytest.raises(NonFiniteError):  # the checkpoint is finite, so the run resumes from it and fails again
        train(experiment, tmp_path / "run")


def test_skip_goes_on_without_the_updates_that_are_not_finite(tmp_path, monkeypatch, caplog):
    def faulty(logits, targets):  # whether the loss is NaN depends on the batch, and so on the step
        return optax.softmax_cross_entropy(logits, targets) * jnp.where(targets.argmax(-1).sum() % 2 == 0, jnp.nan, 1)

    monkeypatch.setitem(LOSSES, "softmax", faulty)
    experiment = tiny_experiment(duration="12 steps", log_every="1 steps", nonfinite="skip")
    assert train(experiment, tmp_path / "run")["step"] == 12
    skipped, losses = records(tmp_path / "run", "skipped"), records(tmp_path / "run", "train_loss")
    assert 0 < skipped[12] < 12 and len(losses) == 12 - skipped[12]
    assert re.search(
        r"step \d+: not finite: the loss and the gradient of .*learning rate .* The update is dropped \(1 in a row\)", caplog.text
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"batch_size": 8}, "batch_size: 16 -> 8"),
        ({"duration": "61 steps"}, "duration"),
        ({"data": dataclasses.replace(tiny_experiment().data, train_split="train[:32]")}, "64 .* -> 32"),
    ],
)
def test_another_config_in_the_same_folder_is_refused_with_the_difference(uninterrupted, change, words):
    before = (uninterrupted / "config.json").read_text()
    with pytest.raises(ConfigError, match=words):
        train(tiny_experiment(**change), uninterrupted)
    assert (uninterrupted / "config.json").read_text() == before


def test_harmless_changes_and_allowed_ones_go_on(tmp_path, uninterrupted, caplog):
    train(tiny_experiment(duration="7 steps"), tmp_path / "run")
    result = train(tiny_experiment(duration="9 steps", log_every="1 steps"), tmp_path / "run", allow_changes=True)
    assert result["step"] == 9 and "duration: '7 steps' -> '9 steps'" in caplog.text


def test_a_checkpoint_of_another_model_names_the_first_differing_tensors_and_the_folder_stays(tmp_path, uninterrupted):
    train(tiny_experiment(duration="2 steps"), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    model = tiny_experiment().model
    wider = dataclasses.replace(model, fields={**model.fields, "dim": 32})
    with pytest.raises(ConfigError, match=r"first params/blocks/0/attn/proj/bias: checkpoint float32\[16\], model float32\[32\]"):
        train(tiny_experiment(duration="2 steps", model=wider), tmp_path / "run", allow_changes=True)
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_folder_in_use_is_refused(tmp_path):
    from vitlab.data import open_source
    from vitlab.runs import folder

    experiment = tiny_experiment()
    info = folder.DataInfo.of(open_source(experiment.data, train=True))
    with folder.claim(tmp_path, experiment, info), pytest.raises(ConfigError, match="another process"):
        folder.claim(tmp_path, experiment, info)
    with folder.claim(tmp_path, experiment, info):
        pass


def test_steps_are_traced_and_the_share_of_the_peak_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("vitlab.train.setup.peak_flops", lambda kind: 1e12)
    macs = count_macs(abstract_model("vit_tiny_patch16", num_classes=10, in_channels=1, image_size=28, **tiny_experiment().model.fields))
    train(tiny_experiment(duration="8 steps"), tmp_path / "run", profile=range(3, 5))
    assert [path.stat().st_size > 0 for path in (tmp_path / "run" / "profile").rglob("*.xplane.pb")] == [True]
    *laps, whole = map(json.loads, (tmp_path / "run" / "timing.jsonl").read_text().splitlines())
    assert whole["step"] == 8 and 0 < whole["goodput"] < 1
    for lap in laps:
        assert lap["mfu"] == pytest.approx(lap["images_per_second"] * 6 * macs / 1e12)


def test_steps_to_trace_are_named_so():
    assert window_of("100:5") == range(100, 105)
    for text in ("100", "0:5", "5:0", "a:b"):
        with pytest.raises(ConfigError, match="must be FIRST:COUNT"):
            window_of(text)


def test_the_peaks_are_found_by_the_names_that_jax_gives():
    names = {
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": None,
        "cpu": None,
    }
    assert {name: peak_flops(name) for name in names} == names

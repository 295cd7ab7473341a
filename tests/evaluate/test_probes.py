"""Probes of frozen features against recordings of their authors' code and on known answers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.evaluate.test_commands import timm_tensors
from tests.goldens import golden
from tests.train.conftest import config_file, tiny_experiment
from vitlab.config import ConfigError
from vitlab.data import open_source
from vitlab.evaluate import __main__ as evaluate
from vitlab.evaluate import knn as knn_module
from vitlab.evaluate.features import Features, extract
from vitlab.evaluate.few_shot import few_shot, fit_ridge
from vitlab.evaluate.knn import knn, nearest, vote
from vitlab.evaluate.linear_probe import Training, create_head, lars, linear_probe, logits_of, train_step
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.loaded import LoadedRun
from vitlab.runs.trained import from_run, without_head


def close(ours, recorded, tolerance=1e-4):
    """Checks the deviation in standard deviations of the recorded values."""
    assert np.abs(np.asarray(ours) - recorded).max() <= tolerance * max(recorded.std(), 1e-12)


@pytest.mark.goldens("tune_probes")
def test_nearest_neighbours_vote_as_dinos_do(golden_file):
    meta, _, recorded = golden.load(golden_file)
    k, labels, expected = meta["k"], recorded["knn/test_labels"], recorded["knn/votes"]
    similarity, neighbours = nearest(recorded["knn/train"], recorded["knn/test"], k)
    votes = vote(similarity, recorded["knn/train_labels"][neighbours], meta["classes"])
    close(votes, expected)
    train = Features(values=recorded["knn/train"], labels=recorded["knn/train_labels"])
    result = knn(train, Features(values=recorded["knn/test"], labels=labels), num_classes=meta["classes"])
    assert meta["k"] == 20 == result["k"]
    top1, top5 = recorded["knn/top1_top5"] / (1 if recorded["knn/top1_top5"].max() <= 1 else 100)
    assert result["top1"] == pytest.approx(top1) and result.get("top5", top5) == pytest.approx(top5)


@pytest.mark.goldens("tune_probes")
def test_the_linear_probe_learns_as_maes_does(golden_file):
    _, state, recorded = golden.load(golden_file)
    x, labels = jnp.asarray(recorded["input/features"]), jnp.asarray(recorded["input/labels"], jnp.int32)
    weight, bias = (jnp.asarray(next(v for n, v in state.items() if n.endswith(f"1.{leaf}"))) for leaf in ("weight", "bias"))
    head = {"weight": weight, "bias": bias, "mean": jnp.asarray(recorded["mae/rm0"]), "var": jnp.asarray(recorded["mae/rv0"])}
    moments, losses = lars().init({"weight": weight, "bias": bias}), []
    for _ in recorded["mae/losses"]:
        head, moments, loss = train_step(head, moments, x, labels, 0.5)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, recorded["mae/losses"], rtol=1e-5)
    for name, key in {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}.items():
        close(head[name], recorded[f"mae/{key}"])
    close(logits_of(head, x), recorded["mae/eval_logits"])


@pytest.mark.goldens("tune_fewshot_lsr")
def test_ridge_regression_scores_as_big_visions_does(golden_file):
    _, _, recorded = golden.load(golden_file)
    x, labels = recorded["input/x"], recorded["input/labels"]
    for key in [name for name in recorded if name.startswith("scores/")]:
        ridge, expected = float(key.split("/")[1]), recorded[key]
        scores = fit_ridge(x, labels, expected.shape[1], ridge=ridge).scores(recorded["input/x_test"])
        close(scores, expected)
        accuracy = (scores.argmax(-1) == recorded["input/test_labels"]).mean()
        assert accuracy == pytest.approx(float(recorded[f"accuracy/{key.split('/')[1]}"]))


def test_more_features_than_images_give_the_same_regression():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(12, 40)), np.arange(12) % 3
    fitted = fit_ridge(x, labels, 3)
    standardised = np.concatenate([(x - x.mean(0)) / (x.std(0) + 1e-5), np.full((12, 1), 100.0)], 1)
    targets = 2.0 * (labels[:, None] == np.arange(3)) - 1
    expected = np.linalg.solve(standardised.T @ standardised + 1024 * np.eye(41), standardised.T @ targets)
    np.testing.assert_allclose(fitted.weights, expected, atol=1e-10)


def clusters(count, *, classes=7, dim=16, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.permutation(np.arange(count) % classes)
    return Features(values=(centres[labels] + noise * rng.normal(size=(count, dim))).astype(np.float32), labels=labels)


def test_blocks_and_queries_change_nothing(monkeypatch):
    train, test = clusters(300), clusters(90, seed=1)
    whole = knn(train, test, num_classes=7)
    x, y = (f.values / np.linalg.norm(f.values, axis=-1, keepdims=True) for f in (train, test))
    monkeypatch.setattr(knn_module, "_BLOCK", 64)
    monkeypatch.setattr(knn_module, "_QUERIES", 17)
    assert knn(train, test, num_classes=7) == whole
    similarity, neighbours = nearest(train.values, test.values, 10)
    np.testing.assert_array_equal(neighbours, np.argsort(-(y @ x.T), axis=-1)[:, :10])
    np.testing.assert_allclose(similarity, -np.sort(-(y @ x.T), axis=-1)[:, :10], atol=1e-6)


def test_fewer_images_than_neighbours_all_vote():
    result = knn(clusters(8), clusters(5, seed=1), num_classes=7)
    assert result["k"] == 8 and list(result["top1_by_k"]) == ["8"]


def test_the_linear_probe_finds_separable_classes_at_one_of_its_rates():
    training = Training(epochs=20, batch_size=64, rates=(1e-6, 10.0))
    results = [linear_probe(clusters(400), clusters(100, seed=1), num_classes=7, training=training) for _ in range(2)]
    assert results[0] == results[1]  # the probe is deterministic
    assert results[0]["rate"] == 10.0 and results[0]["top1"] > 0.95 and set(results[0]["held_out_top1"]) == {"1e-06", "10"}


def test_two_training_images_are_enough_for_the_linear_probe():
    assert "top5" not in linear_probe(clusters(2, classes=2), clusters(4, classes=2), num_classes=2, training=Training(epochs=2))


def test_the_head_begins_small_and_the_same():
    np.testing.assert_array_equal(create_head(8, 3)["weight"], create_head(8, 3)["weight"])
    assert float(jnp.abs(create_head(8, 3)["weight"]).max()) < 0.05


def test_few_shot_takes_so_many_images_a_class():
    result = few_shot(clusters(60, noise=0.05), clusters(50, seed=1, noise=0.05), num_classes=7)
    assert result["shots"] == 5 and result["top1"] > 0.95 and result["top1_by_shots"]["1"] > 0.8
    assert few_shot(clusters(60), clusters(50, seed=1), num_classes=9)["images"] == 50  # two classes have no image


@pytest.mark.parametrize("protocol", ["knn", "linear", "few_shot"])
def test_a_run_is_probed(uninterrupted, protocol, capsys):
    results = []
    for _ in range(2):
        assert evaluate.main([f"--workdir={uninterrupted}", f"--protocol={protocol}", "--config.eval_batch_size=16"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] and (results[0]["protocol"], results[0]["images"], results[0]["step"]) == (protocol, 50, 60)
    assert results[0]["top1"] > 0.15  # chance is 0.1: there are ten classes
    assert json.loads((uninterrupted / "evaluations" / f"{protocol}-step60-test_50" / "evaluation.json").read_text()) == results[0]


def test_features_are_what_the_head_sees(uninterrupted):
    mesh, source = make_mesh(), open_source(tiny_experiment().data, train=False)
    trained = from_run(uninterrupted, mesh)
    features = extract(without_head(trained), source, mesh=mesh, batch_size=16)
    head = trained.weights["params"]["head"]
    np.testing.assert_array_equal(features.labels, source.labels)
    np.testing.assert_allclose(features.values @ head["kernel"] + head["bias"], LoadedRun(trained)(source.images), atol=1e-4)
    assert extract(without_head(trained), source, mesh=mesh, batch_size=16, should_stop=lambda: True) is None


def test_a_checkpoint_of_others_is_probed_whatever_its_classes(uninterrupted, tmp_path, capsys):
    tensors = timm_tensors(from_run(uninterrupted, make_mesh()).weights["params"])
    tensors["head.weight"], tensors["head.bias"] = np.zeros((77, 16), np.float32), np.zeros(77, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    config = config_file(tmp_path, tiny_experiment())
    arguments = ["--model=vit_tiny_patch16", f"--weights={tmp_path}/model.safetensors", f"--config={config}"]
    assert evaluate.main([*arguments, "--config.model.in_channels=1", "--protocol=knn", f"--output={tmp_path}/out"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    evaluate.main([f"--workdir={uninterrupted}", "--protocol=knn"])
    assert json.loads(capsys.readouterr().out)["top1_by_k"] == theirs["top1_by_k"]
    assert [path.name[:28] for path in (tmp_path / "out").iterdir()] == ["knn-vit_tiny_patch16-test_50"]


def test_a_checkpoint_that_lacks_a_part_of_the_backbone_is_refused(uninterrupted, tmp_path):
    tensors = timm_tensors(from_run(uninterrupted, make_mesh()).weights["params"])
    del tensors["norm.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    arguments = [
        "--model=vit_tiny_patch16",
        f"--weights={tmp_path}/model.safetensors",
        f"--config={config_file(tmp_path, tiny_experiment())}",
    ]
    with pytest.raises(ConfigError, match="missing: norm.bias"):
        evaluate.main([*arguments, "--config.model.in_channels=1", "--protocol=linear"])

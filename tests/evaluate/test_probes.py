"""Probes of frozen features against recordings of their authors' code and on known answers."""

import dataclasses
import json
import tracemalloc

import jax
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
from vitlab.evaluate.features import Features, extract, features_key
from vitlab.evaluate.few_shot import few_shot, fit_ridge
from vitlab.evaluate.knn import knn, nearest, shares, vote
from vitlab.evaluate.linear_probe import DINOV2, Training, create_head, lars, linear_probe, logits_of, optimizer_of, train_step
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
    by_dinov2 = shares(similarity, recorded["knn/train_labels"][neighbours], meta["classes"], k)
    close(by_dinov2, recorded["knn/dinov2_probs"])
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


def test_dinov2s_probe_is_a_linear_layer_trained_with_momentum():
    x, labels = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32), jnp.array([0, 1, 2, 0, 1, 2])
    head = create_head(4, 3)
    moments, weight, velocity = optimizer_of(DINOV2).init({n: head[n] for n in ("weight", "bias")}), np.asarray(head["weight"]), 0.0
    bias, bias_velocity = np.zeros(3), 0.0
    for _ in range(3):
        head, moments, _ = train_step(head, moments, x, labels, 0.1, training=DINOV2)
        logits = np.asarray(x) @ weight.T + bias
        error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[np.asarray(labels)]
        velocity, bias_velocity = 0.9 * velocity + error.T @ np.asarray(x) / 6, 0.9 * bias_velocity + error.mean(0)
        weight, bias = weight - 0.1 * velocity, bias - 0.1 * bias_velocity
    np.testing.assert_allclose(head["weight"], weight, atol=1e-6)
    assert not head["mean"].any() and len(DINOV2.rates) == 13
    training = dataclasses.replace(DINOV2, epochs=20, batch_size=64, rates=(1e-6, 0.1))
    result = linear_probe(clusters(400), clusters(100, seed=1), num_classes=7, training=training)
    assert result["rate"] == 0.1 and result["top1"] > 0.95


def test_a_hundred_thousand_images_are_searched_in_little_memory(tmp_path):
    count, dim = 100_000, 64
    values = np.memmap(tmp_path / "values", np.float32, "w+", shape=(count, dim))
    for start in range(0, count, 10_000):
        values[start : start + 10_000] = np.random.default_rng(start).standard_normal((10_000, dim), np.float32)
    wanted = np.array([3, 54_321, 99_999])
    nearest(values[:20_000], np.array(values[wanted]), 5)  # compiles, whose memory is not meant
    tracemalloc.start()
    similarity, where = nearest(values, np.array(values[wanted]), 5)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(where[:, 0], wanted)
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-6)
    assert most < 0.6 * values.nbytes  # a few blocks of 8,192 rows


def test_kept_features_are_found_again_and_only_for_the_same_weights_and_data(uninterrupted, tmp_path, monkeypatch):
    mesh = make_mesh()
    trained, cache = without_head(from_run(uninterrupted, mesh)), tmp_path / "cache"
    source = open_source(tiny_experiment().data, train=False)
    first = extract(trained, source, mesh=mesh, batch_size=16, cache=cache)
    plain = extract(trained, source, mesh=mesh, batch_size=16)
    np.testing.assert_array_equal(first.values, plain.values)
    key = features_key(trained, source)
    other = dataclasses.replace(trained, weights=jax.tree.map(lambda x: x * 2, trained.weights))
    assert features_key(other, source) != key != features_key(trained, open_source(tiny_experiment().data, train=True))
    monkeypatch.setattr("vitlab.evaluate.features._run", None)
    again = extract(trained, source, mesh=mesh, batch_size=32, cache=cache)
    assert isinstance(again.values, np.memmap)
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.labels, source.labels)
    assert sorted(path.suffix for path in cache.iterdir()) == [".f32", ".json"]
    (cache / f"{key}.f32").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"kept features, are damaged \(its size is another than it says\): delete them"):
        extract(trained, source, mesh=mesh, batch_size=16, cache=cache)
    with pytest.raises(ConfigError, match="--cache keeps features, which only"):
        evaluate.main([f"--workdir={uninterrupted}", f"--cache={cache}"])


def test_two_training_images_are_enough_for_the_linear_probe():
    assert "top5" not in linear_probe(clusters(2, classes=2), clusters(4, classes=2), num_classes=2, training=Training(epochs=2))


def test_the_head_begins_small_and_the_same():
    np.testing.assert_array_equal(create_head(8, 3)["weight"], create_head(8, 3)["weight"])
    assert float(jnp.abs(create_head(8, 3)["weight"]).max()) < 0.05


def test_few_shot_takes_so_many_images_a_class():
    result = few_shot(clusters(60, noise=0.05), clusters(50, seed=1, noise=0.05), num_classes=7)
    assert result["shots"] == 5 and result["top1"] > 0.95 and result["top1_by_shots"]["1"] > 0.8
    assert few_shot(clusters(60), clusters(50, seed=1), num_classes=9)["images"] == 50  # two classes have no image


@pytest.mark.parametrize("protocol", ["knn", "linear", "linear_dinov2", "few_shot"])
def test_a_run_is_probed(uninterrupted, protocol, capsys):
    results = []
    for _ in range(2):
        assert evaluate.main([f"--workdir={uninterrupted}", f"--protocol={protocol}", "--config.eval_batch_size=16"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] and (results[0]["protocol"], results[0]["images"], results[0]["step"]) == (protocol, 50, 60)
    if protocol != "linear_dinov2":  # whose rates need more steps than so few images have
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

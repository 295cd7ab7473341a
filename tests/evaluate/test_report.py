"""The files of --report agree with the predictions."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import vitlab
from tests.data.conftest import write_tree
from tests.goldens import golden
from tests.train.conftest import tiny_experiment
from vitlab.config import ConfigError, DataConfig
from vitlab.data import ArraySource, open_source
from vitlab.evaluate import __main__ as evaluate
from vitlab.evaluate.calibration import calibration
from vitlab.evaluate.output import default_name
from vitlab.evaluate.report import Outcomes, write_report
from vitlab.runs.loaded import softmax
from vitlab.train.loop import train


@pytest.mark.goldens("analysis_metrics")
def test_calibration_errors_are_those_of_torchmetrics(golden_file):
    _, _, recorded = golden.load(golden_file)
    probabilities = softmax(recorded["input/logits"])
    found = calibration(probabilities.max(-1), probabilities.argmax(-1) == recorded["input/labels"])
    for name, value in {"l1": found.ece, "l2": found.rms, "max": found.mce}.items():
        assert value == pytest.approx(float(recorded[f"calibration/{name}"]), rel=1e-5)


def test_the_calibration_error_of_four_predictions():
    found = calibration(np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True]), bins=10)
    assert found.images.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert found.ece == pytest.approx(0.25 * abs(1 - 0.55) + 0.75 * abs(2 / 3 - 2.9 / 3))
    assert found.mce == pytest.approx(0.45)


@pytest.fixture(scope="module")
def report(uninterrupted):
    assert evaluate.main([f"--workdir={uninterrupted}", "--report", "--config.eval_batch_size=16"]) == 0
    return uninterrupted / "evaluations" / "step60-test_50"


def rows(path):
    return list(csv.DictReader(path.open()))


def test_predictions_are_those_of_the_loaded_run(report, uninterrupted):
    source, run = open_source(tiny_experiment().data, train=False), vitlab.load_run(uninterrupted)
    predictions, found = run.predict(source.images), rows(report / "predictions.csv")
    assert [row["image"] for row in found] == [source.name_of(i) for i in range(50)]
    assert [row["predicted"] for row in found] == [p.name for p in predictions]
    assert [row["class"] for row in found] == [source.class_names[label] for label in source.labels]
    for row, p, label in zip(found, predictions, source.labels, strict=True):
        assert float(row["class_probability"]) == pytest.approx(p.probabilities[label], rel=1e-4)
        assert float(row["loss"]) == pytest.approx(-np.log(p.probabilities[label]), rel=1e-3, abs=1e-4)


def test_classes_and_confusions_add_up_to_the_result(report, uninterrupted):
    result = json.loads((report / "evaluation.json").read_text())
    assert json.loads((uninterrupted / "evaluation.json").read_text()) == result
    classes, confusions = rows(report / "classes.csv"), rows(report / "confusion.csv")
    names = [row["class"] for row in classes]
    assert sum(int(row["images"]) for row in classes) == 50 == sum(int(row[name]) for row in confusions for name in names)
    assert sum(int(row["right"]) for row in classes) / 50 == pytest.approx(result["top1"])
    for row, confused in zip(classes, confusions, strict=True):
        assert int(confused[row["class"]]) == int(row["right"]) and confused["class"] == row["class"]
    present = [float(row["accuracy"]) for row in classes if row["accuracy"]]
    assert result["mean_class_accuracy"] == pytest.approx(np.mean(present), abs=1e-5)
    losses = [float(row["loss"]) for row in rows(report / "predictions.csv")]
    assert np.mean(losses) == pytest.approx(result["loss"], rel=1e-4)


def test_the_table_of_calibration_gives_the_error_of_the_result(report):
    bins, result = rows(report / "calibration.csv"), json.loads((report / "evaluation.json").read_text())
    gaps = [int(row["images"]) / 50 * abs(float(row["accuracy"]) - float(row["confidence"])) for row in bins]
    assert len(bins) == 15 and sum(gaps) == pytest.approx(result["ece"], abs=1e-4)


def test_pictures_are_pictures(report):
    for name in ("confusion", "calibration", "worst"):
        with Image.open(report / f"{name}.png") as image:
            assert image.format == "PNG" and np.ptp(np.asarray(image)) > 200
    assert not list(report.glob("*.tmp"))


def outcomes_of(labels, logits):
    outcomes = Outcomes()
    for start in range(0, len(labels), 3):
        part = slice(start, start + 3)
        outcomes({"mask": np.ones(len(labels[part]), bool), "label": labels[part]}, logits[part])
    return outcomes


def a_source(count, names):
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 7, 3), np.uint8)
    return ArraySource(images=images, labels=np.arange(count, dtype=np.int32) % len(names), class_names=names)


def test_logits_that_are_not_finite_and_masked_images_are_left_out_but_counted(tmp_path):
    source, logits = a_source(5, ("a", "b")), np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0]]
    logits[1] = np.nan
    outcomes = Outcomes()
    outcomes({"mask": np.array([1, 1, 0, 1, 1], bool), "label": source.labels}, logits)
    result = write_report(tmp_path, outcomes, source, source.class_names)
    found = rows(tmp_path / "predictions.csv")
    assert [row["image"] for row in found] == ["images/0", "images/1", "images/3", "images/4"]
    assert [row["predicted"] for row in found] == ["a", "", "b", "a"]
    assert result["mean_class_accuracy"] == pytest.approx((1 + 1 / 2) / 2) and np.isfinite(result["ece"])


def test_no_image_and_no_mistake_are_no_error(tmp_path):
    write_report(tmp_path, Outcomes(), a_source(3, ("a", "b")), ("a", "b"))
    source = a_source(4, ("a\n\x1b[0m", "猫"))
    write_report(tmp_path, outcomes_of(source.labels, 9 * np.eye(2, dtype=np.float32)[source.labels]), source, source.class_names)
    assert rows(tmp_path / "classes.csv")[1]["class"] == "猫"


def test_more_than_a_thousand_classes_are_written_as_pairs(tmp_path):
    names = tuple(f"class {i}" for i in range(1200))
    source = a_source(6, names)
    logits = np.random.default_rng(0).normal(size=(6, 1200)).astype(np.float32)
    write_report(tmp_path, outcomes_of(source.labels, logits), source, names)
    assert sum(int(row["images"]) for row in rows(tmp_path / "confusion.csv")) == 6 and not (tmp_path / "confusion.png").exists()


def test_every_evaluation_has_a_name_of_its_own(uninterrupted, capsys):
    for arguments in ([], ["--step=56"], ["--config.data.eval_split=test[:30]"], ["--name=mine"]):
        assert evaluate.main([f"--workdir={uninterrupted}", *arguments]) == 0
        printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {path.parent.name for path in (uninterrupted / "evaluations").glob("*/evaluation.json")}
    assert {"step60-test_50", "step56-test_50", "mine"} <= found
    assert any(name.startswith("step60-test_30-") for name in found)
    assert json.loads((uninterrupted / "evaluations" / "mine" / "evaluation.json").read_text()) == printed


def test_names_say_what_was_evaluated():
    assert default_name("classification", {"step": 3, "weights": "averaged"}, "test", None) == "step3-averaged-test"
    assert default_name("knn", {"model": "vit", "weights": "/x/y.pth"}, "train[90%:]", "0123456789") == "knn-vit-train_90-01234567"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workdir={run}", "--name=../x"], "--name=../x must be letters"),
        (["--workdir={run}", "--name=.x"], "must be letters"),
        (["--workdir={run}", "--name="], "must be letters"),
        (["--workdir={run}", "--report", "--protocol=knn"], "--report describes the predictions"),
        (["--workdir={run}", "--protocol=nearest"], "invalid choice"),
        (["--model=x", "--weights=y", "--config=z", "--report"], "need --output=DIR"),
        (["--workdir={run}", "--report", "--output={run}/config.json/x"], "cannot be made"),
    ],
)
def test_wrong_arguments_are_refused(uninterrupted, arguments, words):
    with pytest.raises(ConfigError, match=words):
        evaluate.main([argument.format(run=uninterrupted) for argument in arguments])


def test_top5_is_left_out_where_it_would_always_be_right(tmp_path, capsys):
    write_tree(tmp_path / "images")
    data = DataConfig(source="image_folder", data_dir=str(tmp_path / "images"), eval_split="train")
    experiment = tiny_experiment(data=data, duration="2 steps", eval_every="2 steps", batch_size=4)
    record = train(experiment, tmp_path / "run")
    assert "eval_top1" in record and "eval_top5" not in record and "top-5" not in capsys.readouterr().out

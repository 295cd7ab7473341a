import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.train.conftest import tiny_experiment, uninterrupted  # noqa: F401
from vitlab import compare
from vitlab.config import ConfigError, OptimizerConfig, to_json


@pytest.fixture
def two_runs(uninterrupted, tmp_path):  # noqa: F811
    """Returns a whole run, and a copy with another rate, half as long and with other numbers."""
    shutil.copytree(uninterrupted, tmp_path / "a", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    experiment = tiny_experiment(optimizer=OptimizerConfig(peak_lr=1e-4, warmup="2 steps"), seed=7)
    (tmp_path / "b" / "config.json").write_text(to_json(experiment))
    lines = [line for line in map(json.loads, (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) if line["step"] <= 40]
    for line in lines:
        line |= {"eval_top1": 0.5 if line["step"] == 20 else 0.25} if "eval_top1" in line else {"train_loss": 2.0}
    (tmp_path / "b" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "train')
    return tmp_path


def rows(text, name):
    return [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in text.splitlines() if name in line]


def test_the_table_has_newest_and_best_and_the_configs_what_differs(two_runs, capsys):
    assert compare.main([f"{two_runs}/a", f"{two_runs}/b"]) == 0
    text, errors = capsys.readouterr()
    row = rows(text, f"{two_runs}/b")[0]
    assert row[1:6] == ["vit_tiny_patch16", "40", "25.00%", "50.00%", "20"] and float(row[7]) > 0
    assert rows(text, "optimizer.peak_lr")[0][1:] == ["0.003", "0.0001"] and rows(text, "seed")[0][1:] == ["0", "7"]
    assert "batch_size" not in text and not errors


def test_the_curves_of_each_run_are_drawn(two_runs, capsys):
    assert compare.main([f"{two_runs}/a", f"{two_runs}/b", f"--output={two_runs}/curves.png", "--metrics=eval_top1,train_loss"]) == 0
    with Image.open(two_runs / "curves.png") as image:
        assert image.size == (980, 720)
        pixels = np.asarray(image)
    for half in (pixels[:360, :760], pixels[360:, :760]):
        for colour in ((0, 114, 178), (213, 94, 0)):
            assert (half == colour).all(-1).sum() > 50


def test_points_lie_where_the_axes_say():
    run = compare.Run(
        name="x", experiment=None, lines=({"step": 0, "m": 0.0}, {"step": 10, "m": 1.0}), images_per_second=None, complaints=()
    )
    pixels = np.asarray(compare.draw([run], ["m"]))
    rows_, columns = np.nonzero((pixels[:, :750] == (0, 114, 178)).all(-1))
    assert abs(columns.min() - 64) <= 3 and abs(columns.max() - 760) <= 12
    assert rows_[columns.argmax()] < 40 and rows_[columns.argmin()] > 300  # from the lower left to the upper right


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"[", "is damaged or not of this version"),
        (
            "metrics.jsonl",
            b'{"step": 1, "train_loss": 2}\nnonsense\n\xff\xff\n[]\n{"step": "x"}\n',
            "4 lines are damaged, the first is line 2",
        ),
        ("timing.jsonl", None, "timing.jsonl cannot be read"),
    ],
)
def test_what_is_damaged_is_said_and_the_rest_shown(two_runs, capsys, file, content, words):
    (two_runs / "b" / file).unlink()
    if content is not None:
        (two_runs / "b" / file).write_bytes(content)
    assert compare.main([f"{two_runs}/a", f"{two_runs}/b", f"--output={two_runs}/curves.png"]) == 0
    text, errors = capsys.readouterr()
    assert words in errors and f"{two_runs}/b" in text


def test_runs_that_are_equal_and_one_alone_are_no_error(two_runs, capsys):
    assert compare.main([f"{two_runs}/a", f"{two_runs}/a"]) == 0
    assert "nothing" in capsys.readouterr().out
    assert compare.main([f"{two_runs}/a"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{dir}/none"], "none of these folders has a record"),
        (["{dir}/a", "--output={dir}/x.jpg"], "must be a file *.png"),
        (["{dir}/a", "--output={dir}/x.png", "--metrics=nope"], "no run has any of --metrics=nope; there are: epoch, eval_images"),
        (["{dir}/a", "--metrics=,"], "must name at least one metric"),
        ([], "required"),
    ],
)
def test_wrong_arguments_are_refused(two_runs, arguments, words):
    with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
        compare.main([argument.format(dir=two_runs) for argument in arguments])

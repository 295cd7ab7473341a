"""One line of figures for a model, and equal figures as a row of a CSV file."""

import csv

import jax
import pytest

from vitlab.benchmark import main, measure
from vitlab.config import ConfigError, ModelConfig

TINY = ["--model=vit_tiny_patch16", "--image_size=32", "--field", "dim=16", "--field", "depth=1", "--field", "num_heads=2"]


def test_a_line_is_printed_and_each_run_adds_a_row(tmp_path, capsys):
    output = tmp_path / "results" / "speed.csv"
    for mode in ([], ["--train"]):
        assert main([*TINY, "--batch_size=2", f"--output={output}", *mode]) == 0
    evaluated, trained = capsys.readouterr().out.splitlines()
    assert evaluated.startswith("vit_tiny_patch16  eval  ") and "32x32 x 2 float32" in evaluated and "images/s" in evaluated
    rows = list(csv.DictReader(output.open()))
    assert [row["mode"] for row in rows] == ["eval", "train"]
    assert all(f"{int(row['params']):,} parameters" in line for row, line in zip(rows, (evaluated, trained), strict=True))
    assert rows[0]["fields"] == "dim=16 depth=1 num_heads=2"


def test_counts_and_memory_follow_from_the_shapes():
    fields = {"dim": 16, "depth": 1, "num_heads": 2, "pool": "mean", "patch_size": 16}
    config = ModelConfig(name="vit_tiny_patch16", image_size=32, num_classes=10, fields=fields)
    evaluated, trained = (measure(config, batch_size=4, train=train) for train in (False, True))
    norms, attn, mlp = 2 * 2 * 16, (16 + 1) * 16 * 4, (16 + 1) * 64 + (64 + 1) * 16
    assert evaluated.params == 16 * 16 * 3 * 16 + 16 + 4 * 16 + norms + attn + mlp + 2 * 16 + (16 + 1) * 10
    macs = 4 * 768 * 16 + 4 * 16 * 16 * 4 + 2 * 4 * 4 * 16 + 4 * 2 * 16 * 64 + 16 * 10
    assert evaluated.gmacs == trained.gmacs == round(macs / 1e9, 4)
    images = 4 * 32 * 32 * 3
    assert evaluated.peak_bytes > 4 * evaluated.params + images
    assert trained.peak_bytes > 4 * 4 * trained.params + images  # parameters, two moments, gradients or new parameters
    assert evaluated.images_per_second > 0 and trained.device == f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=vit_tin_patch16"], "did you mean vit_tiny_patch16"),
        ([*TINY, "--field", "dept=3"], "did you mean depth"),
        ([*TINY, "--field", "depth"], "depth has no value"),
        ([*TINY, "--batch_size=0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, words):
    with pytest.raises(ConfigError, match=words):
        main(arguments)


def test_a_file_of_other_columns_is_left_alone(tmp_path):
    output = tmp_path / "other.csv"
    output.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="has the columns"):
        main([*TINY, "--batch_size=1", f"--output={output}"])
    assert output.read_text() == "a,b\n1,2\n"

"""The benchmark of the input: every stage gets a line, and the verdict names the slowest."""

import pytest

from tests.data.conftest import write_tree
from tests.train.conftest import config_file, tiny_experiment
from vitlab import input_benchmark as benchmark
from vitlab.config import AugmentConfig, ConfigError, DataConfig
from vitlab.data.image_folder import open_image_folder

STAGES = ["read", "decode", "augment", "batch", "device put", "loader"]


def lines(experiment, tmp_path, capsys, *arguments):
    config = config_file(tmp_path, experiment)
    assert benchmark.main([f"--config={config}", "--seconds=0.02", "--batch_size=8", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("source", ["bundled", "image_folder"])
def test_each_stage_has_a_line_and_the_last_says_whether_the_input_keeps_up(source, tmp_path, capsys):
    write_tree(tmp_path / "images" / "train")
    (tmp_path / "images" / "train" / "ant" / "5.png").write_bytes(b"")
    folder = DataConfig(source="image_folder", data_dir=str(tmp_path / "images"), eval_split="train", num_threads=1, max_bad_fraction=1.0)
    changes = {} if source == "bundled" else {"data": folder, "augment": AugmentConfig(crop="random_resized")}
    out = lines(tiny_experiment(**changes), tmp_path, capsys, "--step_images_per_second=1e12")
    assert [line[:12].strip() for line in out[:-1]] == STAGES
    assert all(float(line[12:].split()[0].replace(",", "")) > 0 for line in out[:-1])
    assert out[-1].startswith("the input is too slow") and "1,000,000,000,000" in out[-1]


def test_the_verdict_names_the_slowest_stage():
    rates = dict(zip(STAGES, (900.0, 100.0, 300.0, 5000.0, 1.0, 150.0), strict=True))
    assert benchmark.verdict(rates, 150.0).startswith("the input keeps up: 150 images/s")
    assert "decode is the slowest stage, and about 2.0 times the cores" in benchmark.verdict(rates, 300.0)


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    write_tree(tmp_path)
    source = open_image_folder(str(tmp_path), "train")
    (tmp_path / "ant" / "3.png").unlink()
    assert [example["label"] for example in benchmark._read(source, [2, 3, 6])] == [0, 1]


def test_a_stage_is_as_fast_as_its_clock_says(monkeypatch):
    now = iter((0.0, 0.5, 1.0, 1.5))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(now))
    assert benchmark._rate(lambda: 10, 1.2) == 20.0


def test_wrong_arguments_and_data_without_images_are_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="-1 must be positive"):
        lines(tiny_experiment(), tmp_path, capsys, "--seconds=-1")
    write_tree(tmp_path / "images", per_class=1)
    for name in ("ant", "bee"):
        (tmp_path / "images" / name / "0.png").write_bytes(b"")
    data = DataConfig(source="image_folder", data_dir=str(tmp_path / "images"), eval_split="train")
    with pytest.raises(ConfigError, match="none of 2 images of train can be decoded"):
        lines(tiny_experiment(data=data), tmp_path, capsys)

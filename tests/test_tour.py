"""Every line of docs/start/tour.md runs, in order; only the runs are shortened."""

import glob
import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest
from PIL import Image

from vitlab.config import DataConfig
from vitlab.data import open_source

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- needs (?P<needs>[\w.]+) -->\n)?```(?P<language>sh|python)\n(?P<text>.*?)```", re.DOTALL)
SHORT = [
    *("--config.duration=4 steps", "--config.eval_every=2 steps", "--config.checkpoint_every=2 steps", "--config.log_every=1 steps"),
    *("--config.batch_size=16", "--config.eval_batch_size=16", "--config.optimizer.warmup=1 steps", "--config.data.num_threads=1"),
    *("--config.model.depth=1", "--config.model.dim=16"),
]
SMALL = ["--config.data.train_split=train[:64]", "--config.data.eval_split=test[:32]"]
MADE = ["batch.png", "predictions.csv", "curves.png", "runs/quickstart/evaluations/step4-test_32/worst.png", "runs/photos/checkpoints/4"]


def shortened(module, arguments):
    """Returns the arguments, with a shorter run for commands that train."""
    if module not in ("vitlab.train", "vitlab.sweep"):
        return arguments
    return [*arguments, *SHORT, *([] if any("data_dir" in argument for argument in arguments) else SMALL)]


def run_line(line):
    python, flag, module, *arguments = shlex.split(line)
    assert (python, flag) == ("python", "-m")
    expanded = [path for argument in arguments for path in (sorted(glob.glob(argument)) if "*" in argument else [argument])]
    name = module if importlib.util.find_spec(module).submodule_search_locations is None else f"{module}.__main__"
    assert importlib.import_module(name).main(shortened(module, expanded)) == 0, line


def is_there(module):
    return module is None or importlib.util.find_spec(module) is not None


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Returns a folder with the configs and twenty photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the sweep starts processes
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    images = open_source(DataConfig(), train=False).images
    for i in range(20):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, ..., 0]).save(path)
    return tmp_path


def test_every_line_of_the_tour_runs(clone):
    blocks = list(BLOCK.finditer((ROOT / "docs" / "start" / "tour.md").read_text()))
    assert len(blocks) >= 8
    skipped = []
    for block in blocks:
        if not is_there(block["needs"]):
            skipped.append(block["needs"])
        elif block["language"] == "python":
            exec(block["text"], {})
        else:
            for line in block["text"].splitlines():
                run_line(line)
    assert [name for name in MADE if not (clone / name).exists()] == []
    assert set(skipped) <= {"vitlab.export"}


def test_the_lines_of_the_readme_are_those_of_the_tour():
    readme, tour = ((ROOT / name).read_text() for name in ("README.md", "docs/start/tour.md"))
    blocks = re.findall(r"```(?:sh|python)\n(.*?)```", readme, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 12
    assert [line for line in lines if line not in tour.splitlines()] == []

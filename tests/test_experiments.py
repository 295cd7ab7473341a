"""The tables of the experiments are made from their results, so they cannot lie."""

import importlib.util
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vitlab.models.registry import list_models

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def load(folder: str, script: str):
    spec = importlib.util.spec_from_file_location(f"{folder}_{script}", EXPERIMENTS / folder / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = [
    ("02_mixer_swap", "plot"),
    ("03_against_timm", "run"),
    ("03_against_timm", "claims"),
    ("04_input_pipeline", "run"),
    ("05_pod_plans", "run"),
    ("06_counted_steps", "run"),
    ("07_frozen_features", "run"),
]


@pytest.mark.parametrize(("folder", "script"), MADE)
def test_the_table_is_made_from_the_results(folder, script):
    module = load(folder, script)
    assert f" -->\n{module.table()}\n<!-- end -->" in (EXPERIMENTS / folder / "README.md").read_text(), f"run {folder}/{script}.py"


def test_every_mixer_is_in_the_comparison():
    run, plot = load("02_mixer_swap", "run"), load("02_mixer_swap", "plot")
    assert set(plot.costs()) <= set(run.MIXERS)
    assert {run.experiment(mixer, 0).model.fields["mixers"] for mixer in run.MIXERS} == set(run.MIXERS)


def test_models_that_are_compared_with_timms_are_in_the_zoo():
    compared = set(load("03_against_timm", "run").TIMM) | {claim.model for claim in load("03_against_timm", "claims").CLAIMS}
    assert compared <= set(list_models())


def test_every_pipeline_that_is_compared_is_there_and_ours_make_images(tmp_path):
    run, pipelines = load("04_input_pipeline", "run"), load("04_input_pipeline", "pipelines")
    compared = {name for comparison in run.COMPARISONS.values() for name in comparison.pipelines}
    assert compared == set(pipelines.PIPELINES)
    assert {name for target in run.TARGETS for name in (target.pipeline, target.against)} <= compared
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name / "0.jpg")
    with pipelines.OPEN:
        for name in ("vitlab", "vitlab, RandAugment", "plain loop", "loader, 2 threads", "first batch", "bundled"):
            pipelines.PIPELINES[name](str(tmp_path))(256)


def test_a_pipeline_counts_the_time_of_its_processes():
    pipelines = load("04_input_pipeline", "pipelines")
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, begin = pipelines.cpu_seconds(), time.process_time()
        time.sleep(0.5)
        assert pipelines.cpu_seconds() - before > time.process_time() - begin + 0.05
    finally:
        child.kill()
        child.wait()

"""The tables of the experiments are made from their results, so they cannot lie."""

import importlib.util
import pathlib

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def load(folder: str, script: str):
    spec = importlib.util.spec_from_file_location(f"{folder}_{script}", EXPERIMENTS / folder / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("folder", "script"), [("02_mixer_swap", "plot"), ("05_pod_plans", "run")])
def test_the_table_is_made_from_the_results(folder, script):
    module = load(folder, script)
    assert f" -->\n{module.table()}\n<!-- end -->" in (EXPERIMENTS / folder / "README.md").read_text(), f"run {folder}/{script}.py"


def test_every_mixer_is_in_the_comparison():
    run, plot = load("02_mixer_swap", "run"), load("02_mixer_swap", "plot")
    assert set(plot.costs()) <= set(run.MIXERS)
    assert {run.experiment(mixer, 0).model.fields["mixers"] for mixer in run.MIXERS} == set(run.MIXERS)

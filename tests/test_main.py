"""The list of commands, and common behaviour of all commands."""

import importlib
import os
import pathlib
import re
import sys

import pytest

import pallas_kernels
import vitlab
from vitlab import __main__, cli
from vitlab.models import __main__ as models

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = sorted(__main__.commands())
PUBLIC = [
    *("vitlab", "vitlab.cli", "vitlab.config", "vitlab.config.references", "vitlab.data", "vitlab.functional", "vitlab.layers"),
    *("vitlab.layers.initial", "vitlab.losses", "vitlab.mixers", "vitlab.models.registry", "vitlab.plugins"),
]
KERNELS = [f"pallas_kernels.{name}" for name in ("benchmark", "compile", "support")]


def help_of(command: str, capsys) -> str:
    """Returns the text of --help."""
    home = {"vitlab.config": "vitlab.config_keys"}.get(command, command)
    module = importlib.import_module(f"{home}.__main__" if hasattr(importlib.import_module(home), "__path__") else home)
    with pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_the_list_has_every_module_that_runs_but_other_names_of_one(capsys):
    runs = {path for path in (ROOT / "vitlab").rglob("*.py") if '__name__ == "__main__"' in path.read_text()}
    names = {".".join(path.relative_to(ROOT / "vitlab").with_suffix("").parts).removesuffix(".__main__") for path in runs}
    assert names - set(COMMANDS) == {"__main__", "config_keys", "data.benchmark", "data.preview"}
    assert __main__.main([]) == 0
    listing = capsys.readouterr().out
    assert vitlab.__version__ in listing and re.search(r"\n  train +Trains a model\n", listing)


@pytest.mark.parametrize("command", [f"vitlab.{name}" for name in COMMANDS] + KERNELS)
def test_the_help_of_every_command_ends_with_an_example_of_it(command, capsys):
    _, _, end = help_of(command, capsys).rpartition("\nexample")
    assert re.search(rf"^(: |  )python -m {command}( .*)?$", end.removeprefix("s:\n"), re.MULTILINE)


@pytest.mark.parametrize("command", ["train", "plan", "preview", "input_benchmark"])
def test_the_help_of_commands_with_keys_says_where_they_are_explained(command, capsys):
    assert "`python -m vitlab.config` explains the keys" in help_of(f"vitlab.{command}", capsys)


def test_an_unknown_command_is_one_line_with_the_near_misses(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vitlab", "trian"])
    with pytest.raises(SystemExit) as exit_:
        __main__.console()
    assert exit_.value.code == cli.EXIT_USAGE
    assert capsys.readouterr().err == 'error: unknown command "trian": did you mean train?\n'


def test_a_command_runs_as_under_python_m_with_its_arguments(monkeypatch):
    started = []
    monkeypatch.setattr(__main__.runpy, "run_module", lambda name, **options: started.append((name, sys.argv[1:], options)))
    monkeypatch.setattr(sys, "argv", ["vitlab", "models", "swin*"])
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit):
        __main__.console()
    assert started == [("vitlab.models", ["swin*"], {"run_name": "__main__", "alter_sys": True})]
    assert sys.path == [os.getcwd()]  # packages beside the user's configs are found, as under `python -m`


def test_a_pattern_that_no_model_matches_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["models", "vit_tiny_pach*"])
    with pytest.raises(SystemExit) as exit_:
        cli.run(models.main)
    assert exit_.value.code == cli.EXIT_USAGE
    assert capsys.readouterr().err.startswith('error: no model matches "vit_tiny_pach*": did you mean vit_tiny_patch')


def test_the_version_has_one_place():
    assert f'__version__ = "{vitlab.__version__}"' in (ROOT / "vitlab" / "__init__.py").read_text()
    assert vitlab.__version__ not in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_what_it_defines(name):
    module = importlib.import_module(name)
    defined = {key for key, value in vars(module).items() if getattr(value, "__module__", None) == name and not key.startswith("_")}
    assert defined <= set(module.__all__) and all(hasattr(module, key) for key in module.__all__)
    assert list(module.__all__) == sorted(module.__all__)


def test_both_packages_say_that_they_are_typed():
    for package in (vitlab, pallas_kernels):
        assert (pathlib.Path(package.__path__[0]) / "py.typed").is_file()

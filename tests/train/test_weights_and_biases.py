"""Curves at Weights & Biases, with a client that records its calls.

The client can fail in every call; the run continues.
"""

import logging
import sys
import types

import pytest

from tests.train.conftest import config_file, steps_recorded, tiny_experiment
from vitlab.config import ConfigError
from vitlab.train import __main__ as command
from vitlab.train.loop import train
from vitlab.train.weights_and_biases import load_wandb


class Client(types.ModuleType):
    """Replaces the module `wandb`; `fail` names the call that raises."""

    def __init__(self, fail=""):
        super().__init__("wandb")
        self.begun, self.logged, self.ended, self._fail = [], [], [], fail
        self.Settings = lambda **settings: settings

    def _maybe(self, call):
        if call == self._fail:
            raise RuntimeError(f"{call}: the network\nis down")

    def init(self, **arguments):
        self._maybe("init")
        self.begun.append(arguments)
        return self

    def log(self, values, step):
        self._maybe("log")
        self.logged.append((step, values))

    def finish(self, exit_code):
        self._maybe("finish")
        self.ended.append(exit_code)


@pytest.fixture
def client(monkeypatch):
    def install(fail=""):
        monkeypatch.setitem(sys.modules, "wandb", Client(fail))
        return sys.modules["wandb"]

    return install


SHORT = {"duration": "4 steps", "eval_every": "4 steps", "log_every": "1 steps", "checkpoint_every": "4 steps"}


def test_a_resumed_run_goes_on_with_its_curves(client, tmp_path):
    first = client()
    train(tiny_experiment(**SHORT), tmp_path / "run", wandb="flowers")
    second = client()
    train(tiny_experiment(**SHORT | {"duration": "6 steps"}), tmp_path / "run", wandb="flowers", allow_changes=True)
    begun = first.begun[0]
    assert (begun["project"], begun["name"], begun["resume"]) == ("flowers", "run", "allow") and begun["dir"] == str(tmp_path / "run")
    assert begun["config"]["batch_size"] == 16 and begun["settings"] == {"console": "off"}
    assert second.begun[0]["id"] == begun["id"] == (tmp_path / "run" / "wandb_id").read_text().strip()
    steps = [step for step, values in (*first.logged, *second.logged) if "train/loss" in values]
    assert steps == [1, 2, 3, 4, 5, 6] and (first.ended, second.ended) == ([0], [0])
    names = {name for _, values in first.logged for name in values}
    assert {"train/loss", "lr", "eval/top1", "time/images_per_second"} <= names


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_what_fails_there_is_said_once_and_the_run_goes_on(client, tmp_path, caplog, fail):
    client(fail)
    with caplog.at_level(logging.ERROR):
        train(tiny_experiment(**SHORT), tmp_path / "run", wandb="flowers")
    said = [r.getMessage() for r in caplog.records]
    assert said == [f"Weights & Biases cannot be used ({fail}: the network is down); the run goes on without it"]
    assert steps_recorded(tmp_path / "run") == 4


def test_a_damaged_id_is_replaced(client, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb_id").write_text("../x\n")
    used = client()
    train(tiny_experiment(**SHORT | {"duration": "2 steps"}), tmp_path / "run", wandb="flowers")
    assert used.begun[0]["id"].isalnum() and used.begun[0]["id"] in (tmp_path / "run" / "wandb_id").read_text()


def test_without_the_flag_nothing_is_sent(client, tmp_path):
    used = client()
    train(tiny_experiment(**SHORT | {"duration": "2 steps"}), tmp_path / "run")
    assert not used.begun and not (tmp_path / "run" / "wandb_id").exists()


def test_a_client_that_is_not_installed_is_said_before_anything_is_begun(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = config_file(tmp_path, tiny_experiment())
    with pytest.raises(ConfigError, match=r'pip install "vitlab\[wandb\]"'):
        command.main([f"--config={config}", f"--workdir={tmp_path}/run", "--wandb=flowers"])
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_clients_name_is_not_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(ConfigError, match="finds a folder named wandb"):
        load_wandb()

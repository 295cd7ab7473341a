"""The README's tables are generated, so they cannot lie."""

import pathlib
import re

import pytest

from vitlab.config import ConfigError
from vitlab.models.__main__ import main, markdown
from vitlab.models.registry import list_models

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def generated(command: str) -> str:
    return re.search(rf"<!-- {re.escape(command)} -->\n(.*?)\n?<!-- end -->", README, re.DOTALL)[1]


def test_the_zoo_table_is_what_the_command_prints():
    assert generated("python -m vitlab.models --markdown") == markdown(list_models()), "run python -m vitlab.models --markdown"


def test_the_zoo_table_names_every_model():
    for name in list_models():
        assert f"`{name}`" in README


def test_the_command_counts_beside_what_is_published(capsys):
    assert main(["vit_tiny_patch16"]) == 0
    assert re.search(r"vit_tiny_patch16\s+5\.717\s+5\.717\s+1\.25\s+1\.25\s+224x224", capsys.readouterr().out)


def test_a_pattern_without_a_match_names_the_near_misses():
    with pytest.raises(ConfigError, match="did you mean swin_tiny"):
        main(["swim_tiny"])

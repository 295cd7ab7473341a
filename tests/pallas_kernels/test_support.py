"""The tables of support are generated from the predicates, so they cannot lie."""

import pathlib
import re

import pytest

import pallas_kernels
from pallas_kernels.support import main, markdown

FOLDER = pathlib.Path(pallas_kernels.__path__[0])
OPERATORS = sorted(path.parent.name for path in FOLDER.glob("*/README.md") if "pallas_kernels.support" in path.read_text())


@pytest.mark.parametrize("op", OPERATORS)
def test_the_table_in_the_readme_is_what_the_command_prints(op):
    text = (FOLDER / op / "README.md").read_text()
    command = f"python -m pallas_kernels.support {op}"
    (table,) = re.findall(rf"<!-- {command} -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert table == markdown(op), f"run {command}"


def test_window_attention_has_a_table():
    assert "window_attention" in OPERATORS


def test_the_command_prints_it(capsys):
    assert main(["window_attention"]) == 0
    assert capsys.readouterr().out.startswith("| arguments | `pallas_tpu` |")

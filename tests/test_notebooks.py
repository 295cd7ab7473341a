"""Notebooks install vitlab, run whole at a small size, and keep the results of a larger run."""

import importlib.util
import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("*.ipynb"))]

spec = importlib.util.spec_from_file_location("refresh", FOLDER / "refresh.py")
refresh = importlib.util.module_from_spec(spec)
spec.loader.exec_module(refresh)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text())
    refresh.execute(notebook, notebook["metadata"]["vitlab"]["tiny"])


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_the_first_cell_installs_and_names_the_runtimes_of_colab(path):
    first = next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
    text = "".join(first["source"])
    assert "%pip install --quiet vitlab" in text and "vitlab[cuda12]" in text and "vitlab[tpu]" in text


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_it_can_be_read_without_running_and_what_it_shows_is_of_its_code(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["vitlab"]["code"] == refresh.code_of(notebook), "run python notebooks/refresh.py"
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(word in json.dumps(outputs) for word in ("Traceback", "/tmp/", "/home/"))
    assert path.stat().st_size < 500_000

"""Each code block of the documentation runs, and the site builds with every link checked.

Blocks marked `python` run in one process per page, blocks marked `bash` in a shell, both in an
empty folder whose configs are the repository's, shrunk to two steps. Blocks marked `console` name
machines or packages that are absent: they are only parsed. Blocks marked `sh` are the tour's, see
test_tour.py.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHRUNK = """
from vitlab.cli import load_experiment
from vitlab.config import smoke, to_config_dict


def get_config(variant=""):
    return to_config_dict(smoke(load_experiment({path!r} + (variant and ":" + variant), {{}})))
"""


def blocks(page: pathlib.Path, *languages: str) -> list[tuple[str, str]]:
    return [(language, text) for language, text in BLOCK.findall(page.read_text()) if language in languages]


def of(*languages: str) -> list:
    others = [page for page in PAGES if page.name not in ("README.md", "tour.md")]  # the lines of these two run in test_tour.py
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in others if blocks(page, *languages)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Returns an empty folder with small configs, in which `python` is this interpreter."""
    (tmp_path / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.py"):
        (tmp_path / "configs" / path.name).write_text(SHRUNK.format(path=str(path)))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: list[str], text: str) -> None:
    done = subprocess.run([*command, text], capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", of("python", "bash"))
def test_the_blocks_of_a_page_run_in_their_order(page, folder):
    python = ""
    for language, text in blocks(page, "python", "bash"):
        if language == "bash":
            run(["bash", "-euo", "pipefail", "-c"], text)
        else:
            python += text
    if python:
        run([sys.executable, "-c"], python)


@pytest.mark.parametrize("page", of("console"))
def test_what_cannot_run_here_is_a_shell_s_text_at_least(page):
    for _, text in blocks(page, "console"):
        run(["bash", "-n", "-c"], text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_its_language(page):
    fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash", "console", "sh", "text"}, fences[::2]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra `docs`)")
def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "zoo" / "index.html").exists()

"""The wheel, built from the sdist, has what it should and trains from an empty folder."""

import email
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import vitlab
from tests.processes import SECONDS, run_script

ROOT = pathlib.Path(__file__).parents[1]
SETUPTOOLS = 77  # the first that writes a licence expression, as pyproject.toml requires
BUILD = "import sys, setuptools.build_meta as build; print(getattr(build, f'build_{sys.argv[1]}')(sys.argv[2]))"
SCRIPT = """
import pathlib, runpy, sys
import jax, vitlab
from vitlab.cli import load_experiment
from vitlab.config import smoke
from vitlab.train.setup import set_up

assert pathlib.Path(vitlab.__file__).is_relative_to(sys.argv.pop()), vitlab.__file__
setup = set_up(smoke(load_experiment("vitlab:quickstart", {})))
with setup.open_train_batches(0) as batches:
    print(next(batches)["image"].shape, setup.train_step.out_info[1]["loss"].shape)
sys.argv.append("--config=vitlab:quickstart")
runpy.run_module("vitlab.config", run_name="__main__", alter_sys=True)
"""


def build(kind: str, source: pathlib.Path, into: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-c", BUILD, kind, str(into)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return into / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Returns the sdist, and the wheel that is built from the unpacked sdist alone."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < SETUPTOOLS:
        pytest.skip(f"setuptools is older than {SETUPTOOLS}")
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(
        ROOT, folder / "clone", ignore=shutil.ignore_patterns(".*", "docs", "experiments", "build", "*.egg-info", "__pycache__")
    )
    sdist = build("sdist", folder / "clone", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def test_metadata_and_contents_are_whole_and_no_test_is_among_them(release):
    sdist, wheel = release
    assert wheel.name == f"vitlab-{vitlab.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        info = f"vitlab-{vitlab.__version__}.dist-info"
        about = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        commands = archive.read(f"{info}/entry_points.txt").decode()
    assert about["Version"] == vitlab.__version__ and about["License-Expression"] == "Apache-2.0 AND MIT AND CC-BY-4.0 AND CC0-1.0"
    assert about["Requires-Python"] == ">=3.11" and about.get_payload().startswith("# vitlab")
    assert {"tpu", "cuda12", "cuda13", "notebooks"} <= set(about.get_all("Provides-Extra"))
    assert "vitlab = vitlab.__main__:console" in commands
    recipes = {f"vitlab/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.py")}
    sources = {str(path.relative_to(ROOT)) for room in ("vitlab", "pallas_kernels") for path in (ROOT / room).rglob("*.py")}
    data = {f"vitlab/data/bundled/{name}" for name in ("LICENSE", "ORIGIN.md", "fashion_mnist.npz", "photographs.npz")}
    licences = {f"{info}/licenses/{name}" for name in ("LICENSE", "vitlab/data/bundled/LICENSE", "vitlab/data/bundled/ORIGIN.md")}
    launchers = {f"vitlab/launch/{name}" for name in ("gke.yaml", "queued_resources.sh", "skypilot.yaml", "slurm.sbatch", "xpk.sh")}
    whole = launchers | recipes | sources | data | licences | {"vitlab/py.typed", "pallas_kernels/py.typed"}
    assert whole <= files and len(recipes) > 50
    assert {name.split("/")[0] for name in files} == {"vitlab", "pallas_kernels", info}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "configs/quickstart.py"} <= packed
    assert not any(name.startswith(("tests", "notebooks")) for name in files | packed)


def test_the_wheel_alone_trains_a_recipe_by_its_name_in_an_empty_folder(release, tmp_path, monkeypatch):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(release[1]) as archive:
        archive.extractall(site)
    monkeypatch.chdir(empty)
    output = run_script(SCRIPT, str(site), packages=site).stdout
    assert output.startswith("(4, 28, 28, 1) ()") and "\nbatch_size = 64 " in output
    assert not list(empty.iterdir())

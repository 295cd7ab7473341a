"""Generates pages of the documentation for MkDocs: zoo, commands, config keys and figures.

The figures are copies of the experiments' own.
"""

import pathlib
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from vitlab.__main__ import commands

ROOT = pathlib.Path(__file__).parents[1]
FIGURES = {
    "pictures/roofline.png": "experiments/01_kernel_roofline/roofline.png",
    "pictures/mixers.png": "experiments/02_mixer_swap/mixers.png",
}
KERNEL_COMMANDS = ["pallas_kernels.benchmark", "pallas_kernels.compile", "pallas_kernels.support"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the figures to those that lie in docs/."""
    pages = {"reference/zoo.md": _zoo(), "reference/commands.md": _commands(), "reference/config.md": _config()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for uri, path in FIGURES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def _zoo() -> str:
    return f"""# The zoo

A row is a family. Parameters, multiply-accumulates and top-1 on ImageNet-1k are the published ones;
the tests count ours beside them. `python -m vitlab.models` prints a row for each variant.

{_output("vitlab.models", "--markdown")}
"""


def _config() -> str:
    return f"""# Config reference

Every key of an experiment. `--config.KEY=VALUE` replaces a value on the command line;
`python -m vitlab.config --config=FILE` prints the values of a config, its family's fields included.

{_output("vitlab.config", "--markdown")}
"""


def _commands() -> str:
    names = [*(f"vitlab.{name}" for name in commands()), *KERNEL_COMMANDS]
    sections = [f"## {name}\n\n```text\n{_output(name, '--help')}\n```" for name in names]
    return "# Commands\n\nEach command's own `--help`.\n\n" + "\n\n".join(sections) + "\n"


def _output(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.strip()

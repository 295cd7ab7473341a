"""Runs notebooks and keeps what they print and draw: python notebooks/refresh.py [NAME...].

The cells run in one process without Jupyter, each notebook in an empty folder. The install cell is
for Colab and left out. What a cell's last line gives is kept as text, and pictures as PNG. The hash
of the code is kept beside them, so that a test finds outputs that are older than their code.
"""

import ast
import base64
import contextlib
import hashlib
import io
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

FOLDER = pathlib.Path(__file__).parent
_INSTALL = "%pip install"


def code_of(notebook: Mapping[str, Any]) -> str:
    """Returns a hash of all code cells."""
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def execute(notebook: dict[str, Any], sizes: Mapping[str, Any]) -> None:
    """Runs all code cells and replaces their outputs.

    Args:
      notebook: Content of an .ipynb file; changed in place.
      sizes: Values for names that the first code cell after the install cell defines.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    count, sized = 0, False
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or _INSTALL in source:
            continue
        count += 1
        outputs: list[dict[str, Any]] = []
        names["display"] = lambda value, outputs=outputs: outputs.append(_shown(value, "display_data"))
        with _printing_into(outputs):
            _run(source, names, outputs, count)
        if not sized:
            names.update(sizes)
            sized = True
        cell["outputs"], cell["execution_count"] = outputs, count


@contextlib.contextmanager
def _printing_into(outputs: list[dict[str, Any]]) -> Iterator[None]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield
    if text.getvalue():
        outputs.insert(0, {"name": "stdout", "output_type": "stream", "text": text.getvalue().splitlines(keepends=True)})


def _run(source: str, names: dict[str, Any], outputs: list[dict[str, Any]], count: int) -> None:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"<cell {count}>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), f"<cell {count}>", "eval"), names)
        if value is not None:
            outputs.append({"execution_count": count, **_shown(value, "execute_result")})


def _shown(value: Any, kind: str) -> dict[str, Any]:
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "save"):  # a PIL image
        png = io.BytesIO()
        value.save(png, "PNG", optimize=True)
        data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": ["<picture>"]}
    return {"data": data, "metadata": {}, "output_type": kind}


def in_empty_folder(action: Callable[[], None]) -> None:
    """Calls a function in a folder of its own, and comes back."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            action()
        finally:
            os.chdir(before)


def main() -> None:
    """Refreshes the notebooks that are named, or all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        notebook = json.loads(path.read_text())
        in_empty_folder(lambda notebook=notebook: execute(notebook, {}))
        notebook["metadata"].setdefault("vitlab", {})["code"] = code_of(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(path.name)


if __name__ == "__main__":
    main()

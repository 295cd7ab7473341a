"""The report of any task but classification: the loss of each image, and the worst of them, drawn.

The loss is that of the annotations alone, of one image as if it were a batch of its own.
"""

import csv
import heapq
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from PIL import Image

from vitlab.data import Source
from vitlab.data.fields import Kind, fields_of
from vitlab.data.samples import as_picture
from vitlab.drawing.sheet import contact_sheet
from vitlab.files import write_atomically
from vitlab.tasks.task import Batch, Outputs, Result, Setting, Task

_WORST = 16  # number of images on the contact sheet


def seen_of(task: Task, setting: Setting) -> Callable[[Outputs, Batch], dict[str, Array]]:
    """Outputs of a batch for the report: "loss" [b], and the task's predictions."""

    def seen(outputs: Outputs, batch: Batch) -> dict[str, Array]:
        terms = task.loss(outputs, batch, setting)
        counts = {} if task.weights is None else task.weights(batch, setting)
        losses = [term / jnp.maximum(counts[name], 1) if name in counts else term for name, term in terms.items()]
        predicted = {} if task.predictions is None else task.predictions(outputs, setting)
        return {"loss": jnp.stack(losses).sum(0), **{f"predicted {name}": value for name, value in predicted.items()}}

    return seen


class Worst:
    """Collects the loss of each image, and all of the worst; called in order with each batch."""

    def __init__(self):
        self.losses: list[tuple[int, float]] = []  # index in the split, loss
        self.worst: list[tuple[float, int, dict[str, np.ndarray]]] = []  # a heap, the least of them first

    def __call__(self, batch: dict[str, np.ndarray], seen: dict[str, np.ndarray]) -> None:
        """Adds the images of a batch, without padding rows; a loss that is not finite is worst."""
        for row in np.flatnonzero(batch["mask"]).tolist():
            index, loss = int(batch["index"][row]), float(seen["loss"][row])
            self.losses.append((index, loss))
            score = loss if np.isfinite(loss) else np.inf
            if len(self.worst) < _WORST or score > self.worst[0][0]:
                everything = {name: np.array(values[row]) for name, values in {**batch, **seen}.items()}
                push = heapq.heappush if len(self.worst) < _WORST else heapq.heappushpop
                push(self.worst, (score, -index, everything))


def write_worst(folder: pathlib.Path, found: Worst, source: Source, results: Mapping[str, Result]) -> dict[str, Any]:
    """Writes images.csv, a line for each image, and worst.png.

    Args:
      folder: An existing folder; files of the same names are replaced.
      found: The outcomes of all images of `source`.
      source: The split.
      results: Kinds of what the task predicts.

    Returns:
      Nothing for the result of the evaluation, {}.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "loss"])
    writer.writerows([source.name_of(index), f"{loss:.6g}"] for index, loss in found.losses)
    write_atomically(folder / "images.csv", buffer.getvalue().encode("utf-8", "backslashreplace"))
    picture = io.BytesIO()
    _drawn(found, source, results).save(picture, "PNG")
    write_atomically(folder / "worst.png", picture.getvalue())
    return {}


def _drawn(found: Worst, source: Source, results: Mapping[str, Result]) -> Image.Image:
    """Each of the worst images, followed by its annotations and what was predicted, drawn over it.

    Without any the picture is white.
    """
    cells, captions = [], []
    kinds: dict[str, Kind | Result] = {name: kind for name, kind in fields_of(source).items() if name != "image"}
    kinds |= {f"predicted {name}": kind for name, kind in results.items()}
    for _, index, row in sorted(found.worst, key=lambda one: (-one[0], -one[1])):
        image = as_picture(row["image"])
        cells.append(image)
        captions.append([(source.name_of(-index), ""), (f"loss {float(row['loss']):.4g}", "")])
        for name, kind in kinds.items():
            if name in row:
                drawn, caption = kind.draw(image, row[name])
                if drawn is image:
                    captions[-1].append((f"{name}: {caption}", ""))
                else:
                    cells.append(drawn)
                    captions.append([(name, f" {caption}" if caption else "")])
    return contact_sheet(np.stack(cells), captions) if cells else Image.new("RGB", (8, 8), "white")

"""The report of an evaluation: classes, confusions, calibration, worst images, predictions."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitlab.data import Source
from vitlab.data.augment import resize_and_center_crop
from vitlab.data.decode import Decoder, decode
from vitlab.drawing.chart import COLOURS, Chart, matrix
from vitlab.drawing.sheet import contact_sheet
from vitlab.evaluate.calibration import NUM_BINS, Calibration, calibration
from vitlab.files import write_atomically
from vitlab.runs.loaded import name_of, softmax

_DENSE = 1000  # most classes whose confusions are a full matrix; with more classes only pairs that occur are listed
_WORST = 36  # number of images on the contact sheet
_PIXELS = 128  # side of these images, in pixels


class Outcomes:
    """Collects the outcome of each image; called in order with each batch and its logits."""

    def __init__(self):
        self._rows: list[dict[str, np.ndarray]] = []
        self._seen = 0

    def __call__(self, batch: dict[str, np.ndarray], logits: Float[np.ndarray, "b classes"]) -> None:
        """Adds the images of a batch, without padding rows."""
        mask = batch["mask"]
        index, labels, logits = self._seen + np.flatnonzero(mask), batch["label"][mask], logits[mask]
        self._seen += len(mask)
        finite = np.asarray(np.isfinite(logits).all(-1))
        probabilities = softmax(np.where(finite[:, None], logits, 0.0).astype(np.float32))
        predicted = probabilities.argmax(-1)
        own = probabilities[np.arange(len(labels)), labels]
        self._rows.append(
            {
                "index": index,
                "label": labels.astype(np.int64),
                "predicted": np.where(finite, predicted, -1),
                "confidence": np.where(finite, probabilities.max(-1), 0),
                "own": np.where(finite, own, 0),
                "loss": np.where(finite, -np.log(np.maximum(own, 1e-38)), np.inf),
            }
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Arrays of one value an image.

        "index" in the split, "label", "predicted" (-1 where logits are not finite), "confidence"
        (probability of the predicted class), "own" (probability of the label), "loss" (nats).
        """
        kinds = {"index": int, "label": int, "predicted": int, "confidence": float, "own": float, "loss": float}
        return {name: np.concatenate([np.zeros(0, kind), *(row[name] for row in self._rows)]) for name, kind in kinds.items()}


def write_report(
    folder: pathlib.Path, outcomes: Outcomes, source: Source, class_names: Sequence[str], decode: Decoder = decode
) -> dict[str, Any]:
    """Writes {predictions,classes,confusion,calibration}.csv and {confusion,calibration,worst}.png.

    Args:
      folder: An existing folder; files of the same names are replaced.
      outcomes: The outcomes of all images of `source`.
      source: The split.
      class_names: Names of the labels; a head may have further classes, which are named by their
        numbers.
      decode: Function that decodes the images, as the evaluation did.

    Returns:
      {"ece", "mce" (calibration errors), "mean_class_accuracy" (over the classes that have
      images)}.
    """
    columns = outcomes.columns()
    valid = columns["predicted"] >= 0
    size = max(len(class_names), int(columns["predicted"].max(initial=0)) + 1)
    names = [name_of(class_names, i) for i in range(size)]
    counts = _confusions(columns["label"][valid], columns["predicted"][valid])
    images = np.bincount(columns["label"], minlength=size)
    correct = columns["predicted"] == columns["label"]
    right = np.bincount(columns["label"][correct], minlength=size)
    found = calibration(columns["confidence"][valid], correct[valid])
    _write_predictions(folder / "predictions.csv", columns, source, names)
    chosen = np.bincount(columns["predicted"][valid], minlength=size)
    _write_classes(folder / "classes.csv", names, images, right, chosen)
    _write_confusions(folder, counts, names)
    _write_calibration(folder, found)
    _draw_worst(folder / "worst.png", columns, source, names, decode)
    present = images > 0
    mean = float((right[present] / images[present]).mean()) if present.any() else 0.0
    return {"ece": found.ece, "mce": found.mce, "mean_class_accuracy": mean}


def _confusions(labels: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int]]:
    """(label, predicted class, number of images) of the pairs that occur."""
    pairs, counts = np.unique(np.stack([labels, predicted], 1), axis=0, return_counts=True)
    return [(int(a), int(b), int(n)) for (a, b), n in zip(pairs, counts, strict=True)]


def _write_predictions(path: pathlib.Path, columns: dict[str, np.ndarray], source: Source, names: Sequence[str]) -> None:
    rows = [
        [
            source.name_of(int(index)),
            names[label],
            names[predicted] if predicted >= 0 else "",
            f"{confidence:.6g}",
            f"{own:.6g}",
            f"{loss:.6g}",
        ]
        for index, label, predicted, confidence, own, loss in zip(*columns.values(), strict=True)
    ]
    _write_csv(path, ["image", "class", "predicted", "confidence", "class_probability", "loss"], rows)


def _write_classes(path: pathlib.Path, names: Sequence[str], images: np.ndarray, right: np.ndarray, chosen: np.ndarray) -> None:
    """Accuracy (recall) and precision of each class; empty where the divisor is 0."""
    rows = []
    for name, n, r, c in zip(names, images, right, chosen, strict=True):
        rows.append([name, int(n), int(r), f"{r / n:.6g}" if n else "", int(c), f"{r / c:.6g}" if c else ""])
    _write_csv(path, ["class", "images", "right", "accuracy", "predicted", "precision"], rows)


def _write_confusions(folder: pathlib.Path, counts: list[tuple[int, int, int]], names: Sequence[str]) -> None:
    """Writes the confusions: rows are classes, columns predictions.

    With more than 1000 classes there is a line for each pair that occurs, and no picture.
    """
    if len(names) > _DENSE:
        _write_csv(folder / "confusion.csv", ["class", "predicted", "images"], [[names[a], names[b], n] for a, b, n in counts])
        return
    table = np.zeros((len(names), len(names)), np.int64)
    for a, b, n in counts:
        table[a, b] = n
    _write_csv(folder / "confusion.csv", ["class", *names], [[name, *map(int, row)] for name, row in zip(names, table, strict=True)])
    _save(matrix(table, names, rows="class", columns="predicted"), folder / "confusion.png")


def _write_calibration(folder: pathlib.Path, found: Calibration) -> None:
    edges = np.linspace(0, 1, NUM_BINS + 1)
    rows = [
        [f"{low:.4g}", f"{high:.4g}", int(n), f"{accuracy:.6g}", f"{confidence:.6g}"]
        for low, high, n, accuracy, confidence in zip(edges, edges[1:], found.images, found.accuracy, found.confidence, strict=False)
    ]
    _write_csv(folder / "calibration.csv", ["above", "up_to", "images", "accuracy", "confidence"], rows)
    chart = Chart(f"calibration: ECE {found.ece:.3f}, MCE {found.mce:.3f}", (0, 1), (0, 1), size=(600, 460), right=170)
    for low, high, n, accuracy in zip(edges, edges[1:], found.images, found.accuracy, strict=False):
        if n:
            chart.bar((low, high), accuracy, COLOURS[4])
    used = found.images > 0
    chart.line([0.0, 1.0], [0.0, 1.0], COLOURS[6], width=1)
    chart.line(list(found.confidence[used]), list(found.accuracy[used]), COLOURS[0])
    chart.legend(["accuracy of a bin", "at mean confidence", "calibrated"], [COLOURS[4], COLOURS[0], COLOURS[6]])
    chart.label("probability of the predicted class")
    _save(chart.image, folder / "calibration.png")


def _draw_worst(path: pathlib.Path, columns: dict[str, np.ndarray], source: Source, names: Sequence[str], decode: Decoder) -> None:
    """Draws the wrongly predicted images of the largest loss, the largest first.

    Without any the picture is white.
    """
    wrong = np.flatnonzero((columns["predicted"] != columns["label"]) & (columns["predicted"] >= 0))
    worst = wrong[np.argsort(-columns["loss"][wrong], kind="stable")][:_WORST]
    images, captions = [], []
    for row in worst:
        pixels = decode(source[int(columns["index"][row])]["image"], 3)
        images.append(resize_and_center_crop(pixels, (_PIXELS, _PIXELS), "bilinear", 1.0))
        label, predicted = (names[int(columns[what][row])] for what in ("label", "predicted"))
        captions.append([(label, f" {columns['own'][row]:.1%}"), (f"as {predicted}", f" {columns['confidence'][row]:.1%}")])
    _save(contact_sheet(np.stack(images), captions) if images else Image.new("RGB", (8, 8), "white"), path)


def _write_csv(path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode("utf-8", "backslashreplace"))


def _save(image: Image.Image, path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())

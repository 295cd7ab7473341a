"""Plain charts: lines, bars and matrices."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num
from PIL import Image, ImageDraw

from vitlab.drawing.text import Pen

Number = float | int

# Okabe and Ito's colours, which readers with colour blindness can tell apart, without yellow and
# black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#8B4513")
_TEXT = 13  # font size, in pixels
_LEFT, _TOP, _BOTTOM = 64, 30, 44  # margins of the axes, in pixels
_MOST_CELLS = 1000  # largest number of cells per side of a matrix; larger matrices are summed up in blocks
_NAMED = 40  # largest number of rows of a matrix whose cells get numbers and names


class Chart:
    """Axes with ticks on a white picture, to draw into."""

    def __init__(
        self, title: str, x: tuple[Number, Number], y: tuple[Number, Number], *, size: tuple[int, int] = (720, 420), right: int = 16
    ):
        """Draws the axes.

        Args:
          title: Text above the axes, cut off where it is too long.
          x: Range of the x axis.
          y: Range of the y axis.
          size: Width and height of the picture in pixels.
          right: Right margin in pixels, where the legend goes.
        """
        self.image = Image.new("RGB", size, "white")
        self.draw, self.pen = ImageDraw.Draw(self.image), Pen(_TEXT)
        self._x, self._y = _widened(x), _widened(y)
        self._box = (_LEFT, _TOP, size[0] - right, size[1] - _BOTTOM)
        self.pen.draw(self.image, (_LEFT, 8), self.pen.fitted(title, size[0] - _LEFT - 8))
        self._grid()

    def at(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Returns the pixel coordinates of a point."""
        left, top, right, bottom = self._box
        across, up = ((v - low) / (high - low) for v, (low, high) in ((x, self._x), (y, self._y)))
        return left + across * (right - left), bottom - up * (bottom - top)

    def line(self, xs: Sequence[Number], ys: Sequence[Number], colour: str, *, width: int = 2) -> None:
        """Joins points by a line.

        Points that are not finite are left out; points beyond the axes are drawn at their edge.
        """
        left, top, right, bottom = self._box
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        points = [(min(max(x, left), right), min(max(y, top), bottom)) for x, y in points]
        if len(points) > 1:
            self.draw.line(points, colour, width, joint="curve")
        if points:
            x, y = points[-1]
            self.draw.ellipse((x - 2, y - 2, x + 2, y + 2), colour)

    def bar(self, x: tuple[Number, Number], height: Number, colour: str) -> None:
        """Draws a bar from 0 to `height`, between two places of the x axis."""
        (left, top), (right, bottom) = self.at(x[0], height), self.at(x[1], 0)
        self.draw.rectangle((left + 1, min(top, bottom), right - 1, bottom), colour)

    def legend(self, names: Sequence[str], colours: Sequence[str]) -> None:
        """Writes names in their colours into the right margin."""
        left = self._box[2] + 12
        for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
            top = _TOP + 18 * i
            self.draw.rectangle((left, top + 4, left + 10, top + 12), colour)
            self.pen.draw(self.image, (left + 16, top), self.pen.fitted(name, self.image.width - left - 20))

    def label(self, text: str) -> None:
        """Writes a label below the x axis."""
        self.pen.draw(self.image, (int(self._box[0] + self._box[2] - self.pen.length(text)) // 2, self.image.height - 20), text)

    def _grid(self) -> None:
        left, top, right, bottom = self._box
        for tick in _ticks(*self._y):
            y = round(self.at(0, tick)[1])
            self.draw.line((left, y, right, y), "#E0E0E0")
            text = f"{tick:.6g}"
            self.pen.draw(self.image, (left - 6 - int(self.pen.length(text)), y - 8), text, "#404040")
        for tick in _ticks(*self._x):
            x = round(self.at(tick, 0)[0])
            self.draw.line((x, bottom, x, bottom + 4), "#404040")
            text = f"{tick:.6g}"
            self.pen.draw(self.image, (x - int(self.pen.length(text)) // 2, bottom + 6), text, "#404040")
        self.draw.line((left, top, left, bottom, right, bottom), "#404040")


def matrix(values: Int[np.ndarray, "rows columns"], names: Sequence[str], *, rows: str, columns: str) -> Image.Image:
    """Draws a matrix of counts: the darker a cell, the larger its share of its row.

    Args:
      values: Counts, at least 0; beyond 1000 rows, neighbours are summed up in blocks.
      names: One per row and column; up to 40 rows, names and numbers are drawn.
      rows: Meaning of the rows, written into the picture.
      columns: Meaning of the columns.
    """
    values = _blocks(values)
    count, pen = len(values), Pen(_TEXT - 1)
    named = len(names) <= _NAMED
    cell = 28 if named else max(1, 800 // count)
    left = 12 + (min(160, max(int(pen.length(name)) for name in names) + 8) if named else 8)
    image = Image.new("RGB", (max(left + cell * count + 16, 420), 44 + cell * count + (170 if named else 12)), "white")
    pen.draw(image, (12, 8), f"rows: {rows}; columns: {columns}; colour: share of the row")
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    # White to blue; the root keeps small shares visible.
    pixels = (255 - np.multiply.outer(shares**0.5, (255, 141, 77))).round().astype(np.uint8)
    image.paste(Image.fromarray(pixels).resize((cell * count, cell * count), Image.Resampling.NEAREST), (left, 36))
    if named:
        _write_names(image, values, shares, names, left, cell)
    return image


def _write_names(
    image: Image.Image, values: np.ndarray, shares: Num[np.ndarray, "rows columns"], names: Sequence[str], left: int, cell: int
) -> None:
    pen, small = Pen(_TEXT - 1), Pen(_TEXT - 3)
    for i, name in enumerate(names):
        text = pen.fitted(name, left - 16)
        pen.draw(image, (left - 6 - int(pen.length(text)), 36 + cell * i + 6), text)
        text = pen.fitted(name, 148)
        label = Image.new("RGB", (int(pen.length(text)) + 2, 18), "white")
        pen.draw(label, (0, 1), text)
        image.paste(label.rotate(90, expand=True), (left + cell * i + 5, 42 + cell * len(names)))
        for j in np.flatnonzero(values[i]):
            text = str(values[i, j]) if values[i, j] < 10_000 else f"{values[i, j] / 1000:.0f}k"
            x = left + cell * int(j) + (cell - int(small.length(text))) // 2
            small.draw(image, (x, 36 + cell * i + 8), text, "white" if shares[i, j] > 0.3 else "black")


def _blocks(values: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, "r c"]:
    side = -(-len(values) // _MOST_CELLS)
    if side == 1:
        return values
    starts = np.arange(0, len(values), side)
    return np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)


def _widened(limits: tuple[Number, Number]) -> tuple[Number, Number]:
    low, high = limits
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _ticks(low: Number, high: Number) -> list[Number]:
    """Returns about six round numbers between the limits."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

"""Contact sheet: small images in rows, each with lines of text below it."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitlab.drawing.text import Pen

GAP = 8  # gap between cells, in pixels
LINE = 16  # height of a line of text, in pixels
WIDTH = 112  # least width of a cell, in pixels: room for a name of about 18 letters
_FONT_SIZE = 12  # font size, in pixels


def contact_sheet(images: UInt8[np.ndarray, "n h w c"], captions: Sequence[Sequence[tuple[str, str]]]) -> Image.Image:
    """Draws about as many rows as columns; small images are magnified by whole numbers.

    Args:
      images: Grey (c = 1) or RGB (c = 3); at least one.
      captions: Lines of each image: a text, cut off if it is too wide, and a suffix that is never
        cut.
    """
    count, height, width, _ = images.shape
    scale = -(-WIDTH // width) if width < WIDTH else 1
    cell = (max(scale * width, WIDTH) + GAP, scale * height + LINE * max(map(len, captions)) + GAP)
    columns = math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * cell[0] + GAP, -(-count // columns) * cell[1] + GAP), "white")
    pen = Pen(_FONT_SIZE)
    for i, (pixels, lines) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        sheet.paste(image.resize((scale * width, scale * height), Image.Resampling.NEAREST), (left, top))
        for number, (text, suffix) in enumerate(lines):
            pen.draw(sheet, (left, top + scale * height + number * LINE + 1), pen.fitted(text, cell[0] - GAP, suffix))
    return sheet

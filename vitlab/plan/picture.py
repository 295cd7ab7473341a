"""Picture of a counted step: a bar per part of the model and direction, cut by operation kinds."""

from collections import defaultdict
from collections.abc import Sequence

from PIL import Image, ImageDraw

from vitlab.drawing.chart import COLOURS
from vitlab.drawing.text import Pen
from vitlab.plan.profile import Operation

_KINDS = ("product", "kernel", "sum", "elementwise", "copy", "collective")
_TEXT, _ROW, _MARGIN = 13, 22, 12  # font size, height of a row and margin, in pixels
_NAMES, _BARS, _NUMBERS = 200, 560, 130  # widths in pixels


def draw_profile(operations: Sequence[Operation], limit_seconds: float, title: str) -> Image.Image:
    """Bars with milliseconds and shares, slowest part first, below the step and its limit.

    Args:
      operations: Those of `vitlab.plan.profile.profile`.
      limit_seconds: What the products of the step take at the device's peak.
      title: Line above the bars.
    """
    by_kind: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_KINDS, 0.0))
    for each in operations:
        for row in ("counted step", f"{each.part}, {each.direction}"):
            by_kind[row][each.kind] += each.milliseconds
    rows = sorted(by_kind.items(), key=lambda item: -sum(item[1].values()))
    total = sum(by_kind["counted step"].values())
    image = Image.new("RGB", (_NAMES + _BARS + _NUMBERS, 2 * _MARGIN + _ROW * (len(rows) + 3)), "white")
    draw, pen = ImageDraw.Draw(image), Pen(_TEXT)
    pen.draw(image, (_MARGIN, _MARGIN), pen.fitted(title, image.width - 2 * _MARGIN))
    for i, (name, kinds) in enumerate([("limit: the products at the peak", {"product": 1000 * limit_seconds}), *rows], 1):
        top, left = _MARGIN + i * _ROW, float(_NAMES)
        pen.draw(image, (_MARGIN, top), pen.fitted(name, _NAMES - 2 * _MARGIN))
        for kind, ms in kinds.items():
            right = left + _BARS * ms / max(total, 1000 * limit_seconds)
            if right > left:
                draw.rectangle((left, top + 2, right, top + _ROW - 4), "#B0B0B0" if i == 1 else COLOURS[_KINDS.index(kind)])
            left = right
        ms = sum(kinds.values())
        pen.draw(image, (_NAMES + _BARS + 8, top), f"{ms:.3g} ms, {ms / total:.0%}")
    left, top = _NAMES, image.height - _MARGIN - _ROW
    for kind, colour in zip(_KINDS, COLOURS, strict=False):
        draw.rectangle((left, top + 4, left + 10, top + 14), colour)
        pen.draw(image, (left + 16, top), kind)
        left += 36 + int(pen.length(kind))
    return image

"""Text of any alphabet in pictures, drawn with the installed fonts."""

import functools
import logging
import os
import pathlib
from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont

from vitlab.printable import printable

logger = logging.getLogger(__name__)

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_EXTENSIONS = (".ttf", ".otf", ".ttc")
_NO_CHARACTER = "\U0010ffff"  # a character without a glyph in any font: it shows a font's replacement for missing glyphs
_FIRST = ("DejaVuSans", "NotoSans-Regular", "LiberationSans-Regular", "Arial Unicode", "NotoSansCJK-Regular")  # fonts to try first
# Styles of fonts to try last.
_STYLES = ("bold", "italic", "oblique", "mono", "serif", "condensed", "light", "thin", "black", "math", "emoji")


class Pen:
    r"""Draws lines of text of one size; each character comes from the first font that has it.

    Pillow's own font, which has Latin letters only, is the first; the system's fonts follow. A
    character that no font has is drawn as its escape, such as "\u732b", and logged once.
    """

    def __init__(self, size: int):
        """Creates a pen.

        Args:
          size: Height of a line's letters, in pixels.
        """
        self.size = size

    def length(self, text: str) -> float:
        """Returns the width of a text in pixels."""
        return float(sum(font.getlength(part) for font, part in self._parts(text)))

    def draw(self, image: Image.Image, corner: tuple[int, int], text: str, colour: str = "black") -> None:
        """Writes a text with its upper left corner at (x, y) pixels.

        Line breaks and control characters are written as escapes.
        """
        draw, (x, y) = ImageDraw.Draw(image), map(float, corner)
        for font, part in self._parts(text):
            if isinstance(font, ImageFont.FreeTypeFont):
                draw.text((x, y + self.size), part, colour, font, anchor="ls")  # anchored at the baseline, since fonts differ in height
            else:
                draw.text((x, y), part, colour, font)
            x += font.getlength(part)

    def fitted(self, text: str, width: int, suffix: str = "") -> str:
        """Returns the text and the suffix, cut to `width` pixels.

        If both together are wider, the text ends early, in dots.
        """
        text = short = printable(text)
        kept = len(text)
        while kept > 1 and self.length(short + suffix) > width:
            kept -= 1
            short = text[:kept].rstrip() + "..."
        return short + suffix

    def _parts(self, text: str) -> list[tuple[Font, str]]:
        """Splits a text into pieces of one font each."""
        out: list[tuple[str, str]] = []  # path of the font, and the piece
        for character in printable(text):
            path = out[-1][0] if out and _has(out[-1][0], character) else _font_with(character)
            if path is None:
                path, character = "", character.encode("unicode_escape").decode("ascii")
            if out and out[-1][0] == path:
                out[-1] = (path, out[-1][1] + character)
            else:
                out.append((path, character))
        return [(_font(path, self.size), part) for path, part in out]


def font_folders() -> list[pathlib.Path]:
    """Returns the folders of fonts on Linux, macOS and Windows that exist."""
    home, data = pathlib.Path(os.path.expanduser("~")), os.environ.get("XDG_DATA_HOME")
    mine = [pathlib.Path(data) / "fonts"] if data else []
    mine += [home / ".local/share/fonts", home / ".fonts", home / "Library/Fonts"]
    system = ["/usr/local/share/fonts", "/usr/share/fonts", "/Library/Fonts", "/System/Library/Fonts"]
    windows = [pathlib.Path(os.environ["WINDIR"]) / "Fonts"] if "WINDIR" in os.environ else []
    return [folder for folder in (*mine, *map(pathlib.Path, system), *windows) if folder.is_dir()]


@functools.cache
def _paths() -> tuple[str, ...]:
    """Returns Pillow's own font (""), then the system's font files.

    Well-known fonts come first, then plain ones, then styled ones.
    """

    def rank(path: pathlib.Path) -> tuple[int, int, str]:
        first = _FIRST.index(path.stem) if path.stem in _FIRST else len(_FIRST)
        return first, sum(style in path.stem.lower() for style in _STYLES), str(path)

    found = {path for folder in font_folders() for path in _files(folder) if path.suffix.lower() in _EXTENSIONS}
    return ("", *map(str, sorted(found, key=rank)))


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for root, _, names in os.walk(folder):
        yield from (pathlib.Path(root) / name for name in names)


@functools.lru_cache(64)
def _font(path: str, size: int) -> Font:
    """Opens a font file; raises OSError if it is none."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@functools.lru_cache(4096)
def _has(path: str, character: str) -> bool:
    """Whether a font has a glyph for the character, other than its replacement for missing ones."""
    try:
        return character.isspace() or _drawn(path, character) != _drawn(path, _NO_CHARACTER)
    except (OSError, ValueError):  # a damaged file, or one that Pillow cannot draw
        return False


def _drawn(path: str, text: str) -> bytes:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).text((4, 4), text, 255, _font(path, 16))
    return image.tobytes()


@functools.lru_cache(4096)
def _font_with(character: str) -> str | None:
    for path in _paths():
        if _has(path, character):
            return path
    logger.warning("no font here has the letter %s (U+%04X): install one, such as Noto Sans", character, ord(character))
    return None

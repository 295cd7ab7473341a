"""Text in pictures: letters that the fonts have, escapes for missing letters, never a crash."""

import pathlib

import numpy as np
import pytest
from PIL import Image, ImageFont

from vitlab.drawing import text
from vitlab.drawing.text import Pen

DEJAVU = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


@pytest.fixture(autouse=True)
def no_fonts_are_remembered():
    yield
    for cached in (text._paths, text._has, text._font_with, text._font):
        cached.cache_clear()


@pytest.fixture
def only_pillow(monkeypatch):
    """Simulates a machine without fonts."""
    monkeypatch.setattr(text, "font_folders", lambda: [])
    text._paths.cache_clear()
    text._font_with.cache_clear()


def ink(words, size=12):
    image = Image.new("RGB", (400, 30), "white")
    Pen(size).draw(image, (4, 4), words)
    return 255 - np.asarray(image)[..., 0].astype(int)


def test_letters_that_a_font_of_the_system_has_are_drawn_by_it():
    if not pathlib.Path(DEJAVU).is_file():
        pytest.skip("no DejaVu Sans here")
    word = "кошка"
    expected = ImageFont.truetype(DEJAVU, 12).getlength(word)
    parts = Pen(12)._parts(word)
    assert "".join(part for _, part in parts) == word
    assert abs(Pen(12).length(word) - expected) <= 6 and ink(word).sum() > 1000


def test_what_no_font_has_is_drawn_as_its_escape_and_said_once(only_pillow, caplog):
    np.testing.assert_array_equal(ink("a猫"), ink(r"a\u732b"))
    ink("猫")
    assert [r.getMessage() for r in caplog.records] == ["no font here has the letter 猫 (U+732B): install one, such as Noto Sans"]


def test_control_characters_are_drawn_as_escapes():
    np.testing.assert_array_equal(ink("a\nb\x1b"), ink(r"a\nb\x1b"))


@pytest.mark.parametrize("words", ["", " ", "\u0301", "\u202e", "\udcff", "\0", "\U0010ffff", "قطة صغيرة", "क्षि", "😀", "a" * 3000])
def test_nothing_crashes(words):
    assert Pen(12).length(words) >= 0
    ink(words)


def test_a_damaged_font_file_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "NotoSans-Regular.ttf").write_bytes(b"no font")
    (tmp_path / "loop").symlink_to(tmp_path)
    monkeypatch.setattr(text, "font_folders", lambda: [tmp_path])
    text._paths.cache_clear()
    text._font_with.cache_clear()
    assert len(text._paths()) == 2
    np.testing.assert_array_equal(ink("к"), ink(r"\u043a"))


def test_letters_of_several_fonts_stand_on_one_line():
    rows = np.flatnonzero(ink("xкx").sum(1))
    assert rows.max() - rows.min() <= 9


def test_long_text_is_cut_to_the_width_and_the_suffix_stays():
    pen = Pen(12)
    cut = pen.fitted("a name that no cell has room for", 112, " 70%")
    assert cut.startswith("a name that") and cut.endswith("... 70%") and pen.length(cut) <= 112
    assert pen.fitted("ant", 112) == "ant" and pen.fitted("a\nb", 112) == r"a\nb"

"""Text from outside, such as names of files and classes, made safe to show on a terminal."""

import unicodedata

_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: controls, formats, surrogates, line and paragraph separators
_JOINERS = "\u200c\u200d"  # format characters that Persian, Hindi and emojis are spelled with


def printable(text: object) -> str:
    r"""The text on one line, without characters that move the cursor, change colours or direction.

    Control characters, ANSI sequences, bidirectional overrides, other invisible characters and
    bytes that are no UTF-8 become backslash escapes: "a\nb", ESC and U+202E are shown as `a\nb`,
    `\x1b` and `\u202e`. Letters and spaces of all scripts stay.
    """
    return "".join(c.encode("unicode_escape").decode() if _is_invisible(c) else c for c in str(text))


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS

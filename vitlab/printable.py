"""Text of others, such as names of files and classes, as it may be shown on a terminal."""


def printable(text: str) -> str:
    r"""Replaces line breaks, escape sequences and bytes that are no UTF-8 by backslash escapes, "a\nb" -> "a\\nb".

    Letters of all alphabets stay. The result is one line and cannot move the cursor or change colours.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)

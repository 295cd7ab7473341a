"""COCO's run-length encoding of masks, and the text that packs the lengths.

Runs of zeros and ones alternate, down the columns.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vitlab.data.headers import DecodeError


def decode_rle(counts: str | Sequence[int], size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
    """Decodes run lengths, as numbers or as packed text, to a mask of `size` (height, width).

    Raises:
      DecodeError: A run is negative, or the runs do not fill the mask.
    """
    height, width = size
    lengths = np.array(unpack_counts(counts) if isinstance(counts, str) else counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise DecodeError(f"a run-length mask whose runs do not fill {height} x {width} pixels")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def unpack_counts(text: str) -> list[int]:
    """Unpacks the run lengths from COCO's text.

    A character minus 48 has five bits of a number, lowest first, and a sixth bit that is set if
    more characters follow. From the fourth length on, the text stores the difference to the length
    two before.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise DecodeError("a run-length mask with a character that has no meaning")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths

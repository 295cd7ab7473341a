"""COCO's run-length encoding of masks: runs of zeros and ones in turn, down the columns, and the text that packs their lengths."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vitlab.data.headers import DecodeError


def decode_rle(counts: str | Sequence[int], size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
    """The mask of `size` (height, width) whose runs have these lengths, packed in a text or not.

    Raises:
      DecodeError: The runs are negative, or do not fill the mask.
    """
    height, width = size
    lengths = np.array(unpack_counts(counts) if isinstance(counts, str) else counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise DecodeError(f"a run-length mask whose runs do not fill {height} x {width} pixels")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def unpack_counts(text: str) -> list[int]:
    """Lengths of the runs in COCO's text: five bits a character (less 48), the lowest first, the sixth says that more follow.

    From the fourth on, a length is written as its difference to the one two before.
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

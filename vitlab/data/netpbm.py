"""Binary PGM and PPM with any maximum, and PAM, which Pillow reads slowly or not at all.

Formats: the manual pages pgm(5), ppm(5) and pam(5) of Netpbm.
"""

import re

import numpy as np
from PIL import Image

from vitlab.data.headers import DecodeError, Header

_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})")
_PAM_LINE = re.compile(rb"\s*(?:#[^\n]*|(WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE|ENDHDR)[ \t]*([^\n]*))\n")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of samples of a pixel
_DAMAGED = "truncated or damaged header"


def is_netpbm(data: bytes) -> bool:
    """Whether the data is P5, P6 or P7; Pillow reads the text formats and bitmaps."""
    return data[:1] == b"P" and data[1:2] in (b"5", b"6", b"7") and data[2:3].isspace()


def netpbm_header(data: bytes) -> Header:
    """Size and samples of the image.

    Raises:
      DecodeError: The header is cut off or damaged.
    """
    width, height, depth, maximum, _ = _parse(data)
    return Header(width, height, depth * (2 if maximum > 255 else 1), depth > 2, False)


def read_netpbm(data: bytes) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA, with values scaled from the maximum to 8 bits.

    Raises:
      DecodeError: The header is damaged, or pixels are missing.
    """
    width, height, depth, maximum, start = _parse(data)
    kind, count = np.dtype(">u2" if maximum > 255 else "u1"), width * height * depth
    if len(data) < start + count * kind.itemsize:
        raise DecodeError("truncated")
    values = np.frombuffer(data, kind, count, start)
    if maximum == 65535:
        pixels = (values >> 8).astype(np.uint8)  # the high byte, as for other 16-bit formats
    elif maximum == 255:
        pixels = values
    else:
        table = ((np.arange(maximum + 1) * 255 + maximum // 2) // maximum).astype(np.uint8)
        pixels = table[np.minimum(values, maximum)]
    shape = (height, width, depth) if depth > 1 else (height, width)
    return Image.fromarray(np.ascontiguousarray(pixels).reshape(shape))


def _parse(data: bytes) -> tuple[int, int, int, int, int]:
    """Width, height, samples of a pixel, maximum, and offset of the pixels."""
    width, height, depth, maximum, start = _parse_pam(data) if data[1:2] == b"7" else _parse_pnm(data)
    if not (width and height and 1 <= maximum <= 65535 and depth in _MODES):
        raise DecodeError(f"a {data[:2].decode()} of {width} x {height} pixels, {depth} samples each, with maximum {maximum}")
    return width, height, depth, maximum, start


def _parse_pnm(data: bytes) -> tuple[int, int, int, int, int]:
    numbers, position = [], 2
    for _ in range(3):
        match = _NUMBER.match(data, position)
        if match is None:
            raise DecodeError(_DAMAGED)
        numbers.append(int(match[1]))
        position = match.end()
    return numbers[0], numbers[1], 1 if data[1:2] == b"5" else 3, numbers[2], position + 1


def _parse_pam(data: bytes) -> tuple[int, int, int, int, int]:
    values, position = {}, 2
    while True:
        match = _PAM_LINE.match(data, position)
        if match is None:
            raise DecodeError(_DAMAGED)
        position = match.end()
        if match[1] == b"ENDHDR":
            break
        if match[1]:
            values[match[1]] = match[2].strip()
    try:
        width, height, depth, maximum = (int(values[key]) for key in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    except (KeyError, ValueError) as error:
        raise DecodeError(_DAMAGED) from error
    return width, height, depth, maximum, position

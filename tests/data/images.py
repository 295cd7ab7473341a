"""Images written byte by byte, of kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour_type: int, *, bits: int = 8, before: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """Returns a PNG of pixels [h, w] or [h, w, samples].

    Args:
      pixels: Values of the samples.
      colour_type: The number in the header.
      bits: Bits per sample.
      before: Chunks ahead of the IDAT.
      size: Size in the header, if it is to differ from the pixels'.
    """
    rows = pixels.astype(">u2" if bits == 16 else "u1")
    width, height = size or (pixels.shape[1], pixels.shape[0])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = png_chunk(b"IHDR", header), before, png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bomb(side: int = 17000) -> bytes:
    """Returns a PNG of a few kilobytes with side**2 white pixels of one bit."""
    body = zlib.compress(bytes((side // 8 + 2) * side))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, photometric: int, **tags: tuple[int, ...]) -> bytes:
    """Returns an uncompressed TIFF of pixels [h, w] or [h, w, samples] in their own dtype.

    Args:
      pixels: Values of the samples.
      photometric: The photometric interpretation.
      **tags: Further tags of shorts, named t338=(1,) and so on.
    """
    height, width, *rest = pixels.shape
    samples, body = rest[0] if rest else 1, pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = {256: (width,), 257: (height,), 258: (8 * pixels.dtype.itemsize,) * samples, 259: (1,), 262: (photometric,), 273: (8,)}
    entries |= {277: (samples,), 278: (height,), 279: (len(body),)} | {int(name[1:]): value for name, value in tags.items()}
    directory, extra = struct.pack("<H", len(entries)), b""
    begin = 8 + len(body) + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        kind, text = (4, "I") if tag in (273, 279, 322, 323) else (3, "H")
        data = struct.pack(f"<{len(values)}{text}", *values)
        if len(data) > 4:
            data, extra = struct.pack("<I", begin + len(extra)), extra + data
        directory += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4) + extra

"""Headers of encoded images, read before decoding in a few microseconds for JPEG, PNG and WebP.

JPEG: ITU-T T.81, annex B. PNG: W3C, third edition, section 5. WebP: RFC 9649. JPEG 2000: ITU-T
T.800, annex A.
"""

import struct
from typing import NamedTuple

_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")  # length and name of a chunk
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # samples by colour type; a palette becomes RGB
_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"))
_MAX_INFLATION = 1032  # largest number of bytes that deflate makes of one byte
_MAX_SCANS = 100  # most scans of a JPEG; encoders write about ten
_SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_SOS, _EOI = 0xDA, 0xD9
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))
_HEIF_BRANDS = frozenset((b"mif1", b"msf1"))  # brands of both HEIC and AVIF


class DecodeError(ValueError):
    """The bytes are no image that can be decoded; the message is a short reason."""


class Header(NamedTuple):
    """Size and samples of an image, and properties that its decoder needs."""

    width: int  # pixels, at least 1
    height: int  # pixels, at least 1
    samples: int  # bytes per pixel during decoding
    colour: bool  # False: grey
    plain: bool  # OpenCV decodes it right: no transparency, no rotation that OpenCV ignores, a common colour space
    many_scans: bool = False  # the pixels come in several passes, each of which costs the time of a whole image


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG, PNG or WebP; None for other formats.

    The first bytes of a file suffice.

    Raises:
      DecodeError: The header is cut off or damaged, or the image is a HEIC, which is not supported.
    """
    try:
        if data[:2] == b"\xff\xd8":
            header = _read_jpeg(data)
        elif data[:8] == _PNG:
            header = _read_png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _read_webp(data)
        else:
            _refuse_heic(data)
            return None
    except (IndexError, struct.error, KeyError) as error:
        raise DecodeError("truncated or damaged header") from error
    if not (header.width and header.height):
        raise DecodeError(f"{header.width} x {header.height} pixels")
    return header


def check_scans(data: bytes) -> None:
    """Refuses a JPEG with so many scans that decoding takes minutes; for `many_scans` only.

    Raises:
      DecodeError: The JPEG has more than a hundred scans.
    """
    if data.count(b"\xff\xda") > _MAX_SCANS:
        raise DecodeError(f"a JPEG of more than {_MAX_SCANS} scans")


def without_metadata(png: bytes, header: Header) -> bytes:
    """A PNG without texts, profiles and further frames, which can be compressed bombs.

    Raises:
      DecodeError: The file ends before its last chunk, or has too few bytes for the pixels that its
        header declares.
    """
    kept, position, compressed = [], 8, 0
    begin = 8  # first byte of a run of chunks to keep
    while True:
        if position + 12 > len(png):
            raise DecodeError("truncated")
        length, kind = _CHUNK.unpack_from(png, position)
        end = position + 12 + length
        if end > len(png):
            raise DecodeError("truncated")
        if kind == b"IDAT":
            compressed += length
        elif kind not in _PNG_KEPT:
            kept.append(png[begin:position])
            begin = end
        position = end
        if kind == b"IEND":
            break
    bits, colour_type = png[24], png[25]
    per_pixel = bits * (1 if colour_type == 3 else _PNG_SAMPLES[colour_type])
    if header.height * (header.width * per_pixel // 8) > _MAX_INFLATION * compressed:
        raise DecodeError(f"truncated or damaged: too few bytes for {header.width} x {header.height} pixels")
    if begin == 8:
        return png
    return b"".join((_PNG, *kept, png[begin:position]))


def jpeg2000_size(data: bytes) -> tuple[int, int, int]:
    """Width, height and components in the codestream of a JPEG 2000.

    The boxes around the codestream may state other values.

    Raises:
      DecodeError: There is no codestream.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        raise DecodeError("truncated or damaged header")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    return right - left, bottom - top, int.from_bytes(data[start + 40 : start + 42])


def _read_jpeg(data: bytes) -> Header:
    """Reads marker after marker up to the first scan, or to the end of the bytes."""
    position, frame, progressive, interleaved = 2, None, False, True
    while position + 4 <= len(data):
        if data[position] != 0xFF:  # skip bytes between segments, as libjpeg does
            position = data.find(b"\xff", position)
            if position < 0:
                break
            continue
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in (_SOS, _EOI):
            interleaved = marker == _EOI or frame is None or data[position + 4] == frame[3]
            break
        if marker in _SOF:
            frame = struct.unpack_from(">BHHB", data, position + 4)
            progressive = marker in _PROGRESSIVE
        position += 2 if marker in _ALONE or not marker else 2 + (data[position + 2] << 8 | data[position + 3])
    if frame is None:
        raise DecodeError("truncated or damaged header")
    bits, height, width, samples = frame
    return Header(width, height, samples, samples > 1, bits == 8 and samples in (1, 3), progressive or not interleaved)


def _read_png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise DecodeError("truncated or damaged header")
    width, height, bits, colour_type = struct.unpack_from(">IIBB", data, 16)
    samples, plain, position = _PNG_SAMPLES[colour_type], colour_type < 4, 33
    while plain:
        length, kind = _CHUNK.unpack_from(data, position) if position + 8 <= len(data) else (0, b"")
        if kind == b"IDAT":
            break
        plain = kind not in (b"tRNS", b"eXIf", b"")
        position += 12 + length
    return Header(width, height, samples * (2 if bits == 16 else 1), colour_type in (2, 3, 6), plain)


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8 ":  # lossy, without alpha
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, 3, True, True)
    if kind == b"VP8L":  # lossless
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 4, True, not bits >> 28 & 1)
    if kind == b"VP8X" and len(data) >= 30:  # extended (alpha, metadata or animation): an RGBA canvas
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return Header(width, height, 4, True, False)
    raise DecodeError("truncated or damaged header")


def _refuse_heic(data: bytes) -> None:
    brand = data[8:12]
    if data[4:8] == b"ftyp" and (brand in _HEIC_BRANDS or (brand in _HEIF_BRANDS and b"avif" not in data[:64])):
        raise DecodeError("HEIC, which no decoder here reads; convert it to JPEG or PNG")

"""Encoded images of every kind to uint8 RGB or grey."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import smooth
from vitlab.data.decode import DecodeError, decode

PIXELS = smooth(np.random.default_rng(1), 30, 41)
# Two JPEG decoders differ in their chroma upsampling and inverse DCT.
JPEG_MEAN = 1.5


def bomb(side: int = 17000) -> bytes:
    """A PNG of a few kilobytes and 289 million white pixels, more than 2**28."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes((side // 8 + 2) * side))) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_come_back_exactly(kind):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS), kind), 3), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds_agree_with_pillow_and_are_rgb(kind):
    data = encoded(Image.fromarray(PIXELS), kind, quality=95)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data, 3) - pillow).mean() < JPEG_MEAN


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.fromarray(PIXELS).convert(mode)
    got = decode(encoded(image, kind), 3)
    assert got.shape == (30, 41, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean() < 2


def test_gif_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(decode(data, 1).ravel()) == {10}


def test_sixteen_bits_are_scaled_not_clipped():
    wide = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    got = decode(encoded(Image.fromarray(wide), "PNG"), 1)[..., 0].astype(int)
    assert np.abs(got - (wide >> 8)).max() <= 1


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif, quality=95)
    assert decode(data, 3).shape == (41, 30, 3)


def test_decoded_pixels_pass_and_change_channels():
    assert decode(PIXELS, 3) is PIXELS
    assert decode(PIXELS, 1).shape == (30, 41, 1)
    np.testing.assert_array_equal(decode(PIXELS[..., :1], 3), PIXELS[..., :1].repeat(3, -1))


@pytest.mark.parametrize(("data", "words"), [(b"", "empty"), (b"text", "not an image"), (None, "truncated")])
def test_broken_data_says_why(data, words):
    data = encoded(Image.fromarray(PIXELS), "PNG")[:200] if data is None else data
    with pytest.raises(DecodeError, match=words):
        decode(data, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_images_of_every_kind_are_refused(kind, share):
    data = encoded(Image.fromarray(PIXELS), kind)
    with pytest.raises(DecodeError):
        decode(data[: int(share * len(data))], 3)


def test_a_real_decompression_bomb_is_refused_by_its_header():
    data = bomb()
    assert len(data) < 1e5
    with pytest.raises(DecodeError, match="too large"):
        decode(data, 3)


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("cv2.imdecode", lambda *_: None)
    with pytest.raises(DecodeError, match="too large"):
        decode(encoded(Image.fromarray(PIXELS), "PNG"), 3)

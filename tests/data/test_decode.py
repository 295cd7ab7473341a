"""Encoded images of every kind to uint8 RGB or grey."""

import io
import pathlib
import re
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import vitlab
from tests.data.conftest import smooth
from tests.data.images import bomb, encoded, png, png_chunk, tiff
from tests.processes import SECONDS
from vitlab.config import DataConfig
from vitlab.data.decode import DecodeError, decode, decoder

PIXELS = smooth(np.random.default_rng(1), 30, 41)
# Two JPEG decoders differ in their chroma upsampling and inverse DCT.
JPEG_MEAN = 1.5
COLOUR = np.full((3, 5, 3), (200, 100, 50), np.uint8)
GREY = np.full((3, 5), 100, np.uint8)
ALPHA = 51  # opacity of a fifth, of 255
RGBA = np.dstack([COLOUR, np.full((3, 5), ALPHA, np.uint8)])
LA = np.dstack([GREY, np.full((3, 5), ALPHA, np.uint8)])
PREMULTIPLIED = np.dstack([COLOUR // 5, RGBA[..., 3:]])
ON_WHITE = (244, 224, 214)  # 255 + (x - 255) / 5 for each channel x of the colour
GREY_ON_WHITE = (224, 224, 224)
HALF = np.full((3, 5), 0.5)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_come_back_exactly(kind):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS), kind), 3), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds_agree_with_pillow_and_are_rgb(kind):
    data = encoded(Image.fromarray(PIXELS), kind, quality=95)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data, 3) - pillow).mean() < JPEG_MEAN


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGB"])
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
    exif[0x0112] = 6  # orientation: rotate right by 90 degrees
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


def scaled(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) * 257


def pgm(maximum: int, value: int) -> bytes:
    return f"P5\n# a comment\n5 3\n{maximum}\n".encode() + np.full(15, value, ">u2" if maximum > 255 else "u1").tobytes()


def pam(pixels: list[int], depth: int, maximum: int = 255) -> bytes:
    head = f"P7\nWIDTH {len(pixels) // depth}\nHEIGHT 1\n# a comment\nDEPTH {depth}\nMAXVAL {maximum}\nTUPLTYPE X\nENDHDR\n"
    return head.encode() + bytes(pixels)


def transparent(*values: int) -> bytes:
    return png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


PALETTE = png_chunk(b"PLTE", bytes((200, 100, 50)))
RIGHT_VALUES = {
    "png 16-bit RGB": (png(scaled(COLOUR), 2, bits=16), (200, 100, 50)),
    "png 16-bit grey": (png(scaled(GREY), 0, bits=16), (100,) * 3),
    "png palette": (png(np.zeros((3, 5)), 3, before=PALETTE), (200, 100, 50)),
    "png RGBA": (png(RGBA, 6), ON_WHITE),
    "png 16-bit RGBA": (png(scaled(RGBA), 6, bits=16), ON_WHITE),
    "png LA": (png(LA, 4), GREY_ON_WHITE),
    "png 16-bit LA": (png(scaled(LA), 4, bits=16), GREY_ON_WHITE),
    "png palette, alpha": (png(np.zeros((3, 5)), 3, before=PALETTE + png_chunk(b"tRNS", bytes((ALPHA,)))), ON_WHITE),
    "png transparent colour": (png(COLOUR, 2, before=transparent(200, 100, 50)), (255,) * 3),
    "png another transparent colour": (png(COLOUR, 2, before=transparent(200, 100, 51)), (200, 100, 50)),
    "png transparent grey": (png(GREY, 0, before=transparent(100)), (255,) * 3),
    "png 16-bit transparent colour": (png(scaled(COLOUR), 2, bits=16, before=transparent(51400, 25700, 12850)), (255,) * 3),
    "png 16-bit, another by its low byte": (png(scaled(COLOUR), 2, bits=16, before=transparent(51401, 25700, 12850)), (200, 100, 50)),
    "png 16-bit transparent grey": (png(scaled(GREY), 0, bits=16, before=transparent(25700)), (255,) * 3),
    "tiff RGBA": (tiff(RGBA, 2, t338=(2,)), ON_WHITE),
    "tiff RGBA, associated": (tiff(PREMULTIPLIED, 2, t338=(1,)), ON_WHITE),
    "tiff RGBA, associated, 16-bit": (tiff(scaled(PREMULTIPLIED), 2, t338=(1,)), ON_WHITE),
    "tiff RGB and a fourth sample": (tiff(RGBA, 2, t338=(0,)), (200, 100, 50)),
    "tiff LA": (tiff(LA, 1, t338=(2,)), GREY_ON_WHITE),
    "tiff LA, associated": (tiff(LA // np.array((5, 1), np.uint8), 1, t338=(1,)), GREY_ON_WHITE),
    "tiff 16-bit RGB": (tiff(scaled(COLOUR), 2), (200, 100, 50)),
    "tiff 16-bit grey": (tiff(scaled(GREY), 1), (100,) * 3),
    "tiff 16-bit, white is zero": (tiff(scaled(GREY), 0), (155,) * 3),
    "tiff 8-bit, white is zero": (tiff(GREY, 0), (155,) * 3),
    "tiff big-endian": (encoded(Image.frombytes("I;16B", (1, 1), bytes((100, 0))), "TIFF"), (100,) * 3),
    "tiff Lab (D50)": (encoded(Image.frombytes("LAB", (1, 1), bytes((138, 81, 70))), "TIFF"), (251, 5, 4)),
    "tiff YCbCr": (encoded(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"), (199, 99, 49)),
    "tiff CMYK": (encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), (200, 100, 50)),
    "tiff palette, alpha": (encoded(Image.fromarray(RGBA).convert("PA"), "TIFF"), ON_WHITE),
    "jpeg CMYK": (encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=100), (200, 100, 50)),
    "webp RGBA": (encoded(Image.fromarray(RGBA), "WEBP", lossless=True), ON_WHITE),
    "webp RGB, lossless": (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), (200, 100, 50)),
    "avif RGBA": (encoded(Image.fromarray(RGBA), "AVIF", quality=100), ON_WHITE),
    "jpeg 2000 RGBA": (encoded(Image.fromarray(RGBA), "JPEG2000"), ON_WHITE),
    "jpeg 2000, 16-bit": (encoded(Image.fromarray(scaled(GREY)), "JPEG2000"), (100,) * 3),
    "pgm of maximum 1023": (pgm(1023, 512), (128,) * 3),
    "pgm of maximum 1023, white": (pgm(1023, 1023), (255,) * 3),
    "pgm of maximum 15": (pgm(15, 7), (119,) * 3),
    "pgm of maximum 65535": (pgm(65535, 25700), (100,) * 3),
    "pgm, text": (b"P2 1 1 1023 512\n", (128,) * 3),
    "ppm, text": (b"P3 1 1 100 100 50 0\n", (255, 128, 0)),
    "ppm, 16-bit": (b"P6 5 3 65535\n" + scaled(COLOUR).astype(">u2").tobytes(), (200, 100, 50)),
    "pbm": (b"P4 8 1\n\0", (255,) * 3),
    "pam RGB": (pam([200, 100, 50], 3), (200, 100, 50)),
    "pam RGBA": (pam([200, 100, 50, ALPHA], 4), ON_WHITE),
    "pam LA": (pam([100, ALPHA], 2), GREY_ON_WHITE),
    "pam bits": (pam([1], 1, maximum=1), (255,) * 3),
    "gif, transparent": (encoded(Image.new("P", (5, 3), 0), "GIF", transparency=0), (255,) * 3),
}


@pytest.mark.parametrize("name", RIGHT_VALUES)
def test_every_kind_of_sample_has_its_right_value(name):
    data, colour = RIGHT_VALUES[name]
    got = decode(data, 3)[0, 0].astype(int)
    assert np.abs(got - colour).max() <= 1, got  # half-transparent values are rounded in several places
    luma = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    assert abs(int(decode(data, 1)[0, 0, 0]) - luma) <= 1


@pytest.mark.parametrize(
    "data",
    [
        tiff(HALF.astype(np.float32), 1, t339=(3,)),
        tiff(HALF.astype(np.float64), 1, t339=(3,)),
        tiff(np.dstack([HALF] * 3).astype(np.float32), 2, t339=(3, 3, 3)),
        tiff(GREY.astype(np.int8), 1, t339=(2,)),
        tiff(GREY.astype(np.int16), 1, t339=(2,)),
        tiff(GREY.astype(np.int32), 1, t339=(2,)),
        tiff(GREY.astype(np.uint32), 1),
        b"Pf\n5 3\n-1.0\n" + HALF.astype("<f4").tobytes(),
        encoded(Image.fromarray(HALF.astype(np.float32)), "TIFF"),
    ],
    ids=["float32", "float64", "float32 RGB", "int8", "int16", "int32", "uint32", "PFM", "F of Pillow"],
)
def test_samples_without_an_agreed_range_are_refused_and_never_black(data):
    with pytest.raises(DecodeError, match="save 8 or 16 bits|not an image"):
        decode(data, 1)


def test_transparent_pixels_lie_on_the_background_of_the_config():
    clear = np.dstack([COLOUR, np.zeros((3, 5), np.uint8)])
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        data = encoded(Image.fromarray(clear), kind, **options)
        assert decode(data, 3)[0, 0].tolist() == [255, 255, 255]
        on = decoder(DataConfig(background=(10, 20, 30)))
        assert on(data, 3)[0, 0].tolist() == [10, 20, 30]
        assert on(data, 1)[0, 0].tolist() == [18]
    half = np.dstack([COLOUR, np.full((3, 5), 102, np.uint8)])
    expected = [round((2 * c + 3 * b) / 5) for c, b in zip((200, 100, 50), (10, 20, 30), strict=True)]
    assert on(encoded(Image.fromarray(half), "PNG"), 3)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("kind", "alpha"), [("JPEG", False), *((kind, alpha) for kind in ("PNG", "TIFF", "WEBP", "AVIF") for alpha in (False, True))]
)
def test_exif_rotation_is_applied_in_every_format(kind, alpha):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate right by 90 degrees
    image = np.full((20, 30, 4), 255, np.uint8)
    image[:8, :8, :3] = 0
    data = encoded(Image.fromarray(image[..., : 3 + alpha]), kind, exif=exif)
    got = decode(data, 1)[..., 0]
    assert got.shape == (30, 20) and got[:6, -6:].max() < 30 and got[:6, :6].min() > 225


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "HEIC.*convert it to JPEG"),
        (bomb(), "too large: 17000 x 17000 pixels.*raise data.max_image_bytes"),
        (bomb(2**14), "too large"),
        (png(GREY, 0, size=(9000, 9000)), "too few bytes for 9000 x 9000"),
        (png(GREY, 0, size=(0, 3)), "0 x 3 pixels"),
        (png(GREY, 0, size=(2**31 - 1, 2**31 - 1)), "too large"),
        (png(GREY, 0)[:-12], "truncated"),
        (b"P5 100000 100000 255\n", "too large"),
        (b"P5 5 3 0\n" + bytes(15), "maximum 0"),
        (b"P5 5 3 255\n" + bytes(14), "truncated"),
        (b"P7\nWIDTH 5\nENDHDR\n", "header"),
        (b"\xff\xd8\xff\xe0", "header"),
        (b"RIFF\0\0\0\0WEBPVP8X", "header"),
    ],
)
def test_what_its_header_refuses_is_refused_before_it_is_decoded(data, words):
    begin = time.process_time()
    with pytest.raises(DecodeError, match=words):
        decode(data, 3)
    assert time.process_time() - begin < 1


def test_a_limit_of_the_config_is_in_bytes_of_decoded_pixels():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"):
        data = encoded(Image.fromarray(PIXELS), kind)
        assert decoder(DataConfig(max_image_bytes=8 * PIXELS.size))(data, 3).shape == PIXELS.shape
        with pytest.raises(DecodeError, match=f"too large.*raise data.max_image_bytes={PIXELS.size - 1}"):
            decoder(DataConfig(max_image_bytes=PIXELS.size - 1))(data, 3)


def test_metadata_bombs_and_further_frames_of_a_png_are_never_inflated():
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8_000_000)))
    data = png(COLOUR, 2, before=text * 200 + png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(8_000_000))))
    np.testing.assert_array_equal(decode(data, 3), COLOUR)


def test_a_jpeg_of_a_thousand_scans_is_refused():
    data = encoded(Image.fromarray(PIXELS), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert decode(data, 3).shape == PIXELS.shape
    with pytest.raises(DecodeError, match="scans"):
        decode(data[:last] + data[last:-2] * 1000 + data[-2:], 3)


PEAK = """
import resource, sys
from vitlab.data.decode import DecodeError, decode
sys.path.insert(0, {root!r})
from tests.data.images import bomb, png, png_chunk, tiff
import numpy as np, zlib
grey = np.full((30, 30), 100, np.uint8)
text = png_chunk(b"zTXt", b"a" + bytes(2) + zlib.compress(bytes(8_000_000)))
hostile = {{
    "bomb": [bomb(17000), bomb(2**14)],
    "flipped": [png(grey, 0, size=size) for bit in range(31) for size in ((30 ^ 1 << bit, 30), (30, 30 ^ 1 << bit))],
    "text": [png(grey, 0, before=text * 60)],
    "tile": [tiff(grey, 1, t322=(1 << 30,), t323=(1 << 30,))],
    "tiff": [tiff(grey, 1, t256=(65535,), t257=(65535,)), tiff(grey, 1, t256=(16000,), t257=(16000,), t278=(16000,))],
    "pgm": [b"P5 16000 16000 255 ", b"P5 99999 99999 255 "],
}}[sys.argv[1]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in hostile:
    try:
        decode(data, 3)
    except DecodeError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("kind", ["bomb", "flipped", "text", "tile", "tiff", "pgm"])
def test_small_hostile_files_take_little_memory(kind):
    root = str(pathlib.Path(vitlab.__file__).parents[1])
    script = PEAK.format(root=root)
    result = subprocess.run([sys.executable, "-c", script, kind], capture_output=True, text=True, timeout=SECONDS, check=True, cwd=root)
    assert int(result.stdout.split()[-1]) < 100e6, result.stdout + result.stderr


def test_images_are_opened_in_one_place_only():
    root = pathlib.Path(vitlab.__file__).parents[1]
    files = [path for folder in ("vitlab", "configs", "experiments") for path in (root / folder).rglob("*.py")]
    opening = re.compile(r"Image\.open\(|im(?:decode|read)(?:multi)?\(|open_image\(")
    found = {path.relative_to(root).as_posix() for path in files if opening.search(path.read_text())}
    assert "vitlab/data/decode.py" in found
    for name in found - {"vitlab/data/decode.py"}:
        assert all("formats=" in line for line in (root / name).read_text().splitlines() if "Image.open(" in line), name

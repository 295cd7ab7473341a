"""Thousands of damaged and hostile images: each is decoded or refused in bounded memory and time.

The figures are in docs/reliability.md; this command prints them:
python -m pytest -m slow -s tests/data/test_hostile_images.py
"""

import json
import pathlib
import subprocess
import sys

import pytest

import vitlab

CASES = 6000
MEMORY = 800e6  # bytes beside the interpreter's: three times the limit of 2**28 bytes per image
SECONDS = 20  # longest time for one image, on a busy machine

TRIAL = """
import collections, io, json, resource, sys, time
import numpy as np
from PIL import Image
from tests.data.images import bomb, encoded, png, png_chunk, tiff
from vitlab.data.decode import DecodeError, decode, header_of

def refuse(event, args):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"):
        print("a process was started:", event, args, flush=True)
        sys.exit(3)

sys.addaudithook(refuse)
rng = np.random.default_rng(int(sys.argv[1]))
photo = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 4), dtype=np.uint8)).resize((83, 61), 3))
rgb, grey = Image.fromarray(photo[..., :3].copy()), Image.fromarray(photo[..., 0].copy())
exif = Image.Exif()
exif[0x0112] = 6
seeds = [encoded(rgb, "JPEG"), encoded(rgb, "JPEG", progressive=True, exif=exif), encoded(rgb.convert("CMYK"), "JPEG"),
    encoded(rgb, "PNG"), encoded(Image.fromarray(photo), "PNG", exif=exif), encoded(rgb.quantize(20), "PNG"),
    png(photo[..., 0].astype(int) * 257, 0, bits=16), encoded(rgb, "WEBP"), encoded(Image.fromarray(photo), "WEBP", lossless=True),
    encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(9)]), encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(9)]),
    encoded(rgb, "BMP"), encoded(grey, "BMP"), encoded(rgb.quantize(20), "BMP"), encoded(rgb, "PPM"), encoded(grey, "PPM"),
    b"P5 83 61 1023 " + bytes(2 * 83 * 61), b"P2 2 2 1023 5 6 7 8 ", encoded(rgb, "AVIF"), encoded(rgb, "JPEG2000"),
    *(encoded(rgb, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
    encoded(grey.convert("1"), "TIFF", compression="group4"), tiff(photo[..., 0].astype(np.uint16), 1), tiff(photo, 2, t338=(1,)),
    encoded(Image.fromarray(photo[..., 0].astype(np.float32)), "TIFF"), encoded(rgb.convert("LAB"), "TIFF")]

def mutated(data):
    data, kind = bytearray(data), rng.integers(6)
    if kind == 0:  # bits anywhere
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 1:  # bits of the header
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(min(len(data), 200))] ^= 1 << rng.integers(8)
    elif kind == 2:  # a header of extremes
        at = rng.integers(min(len(data), 120))
        data[at : at + 4] = int(rng.choice([0, 1 << 14, 1 << 16, 1 << 31, (1 << 31) - 1, (1 << 32) - 1])).to_bytes(4)
    elif kind == 3:  # cut off
        del data[rng.integers(len(data)) :]
    elif kind == 4:  # a stretch repeated or lost
        a, b = sorted(rng.integers(len(data), size=2))
        data[a:b] = data[a:b] * int(rng.choice([0, 2, 50]))
    else:  # the directory at the end, as TIFF has it
        for _ in range(rng.integers(1, 4)):
            data[-1 - rng.integers(min(len(data), 250))] = rng.choice([0, 1, 127, 128, 255])
    return bytes(data)

def special():
    side = int(rng.integers(1000, 40000))
    return [bomb(side if side < 20000 else 20000), png(photo[..., 0], 0, size=(side, side)), b"P5 %d %d 255 " % (side, side),
        b"P4 %d %d " % (side, side), tiff(photo[..., 0], 1, t256=(side,), t257=(side,)), b"%!PS-Adobe-3.0 EPSF-3.0 " + bytes(99),
        tiff(photo[..., 0], 1, t322=(side * 1000,), t323=(side * 1000,))][rng.integers(7)]

counts, slowest, before = collections.Counter(), 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for case in range(int(sys.argv[2])):
    data = special() if case % 50 == 0 else mutated(seeds[case % len(seeds)])
    channels = 1 + 2 * int(rng.integers(2))
    begin = time.process_time()
    try:
        pixels = decode(data, channels)
    except DecodeError as error:
        counts["refused"] += 1
    else:
        counts["decoded"] += 1
        header = header_of(data)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == channels, pixels.shape
        assert sorted(pixels.shape[:2]) == sorted((header.height, header.width)), (pixels.shape, header, data[:60])
    took = time.process_time() - begin
    if took > slowest:
        slowest = took
    if took > 5:
        print("slow", took, len(data), data[:80], file=sys.stderr)
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps({"peak": peak, "slowest": slowest, **counts}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_hostile_images_are_decoded_or_refused_within_bounds(seed):
    root = pathlib.Path(vitlab.__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-c", TRIAL, str(seed), str(CASES // 2)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=root)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    print(figures)
    assert figures["decoded"] + figures["refused"] == CASES // 2 and min(figures["decoded"], figures["refused"]) > CASES / 20
    assert figures["peak"] < MEMORY and figures["slowest"] < SECONDS

"""Makes vitlab/data/bundled/photographs.npz from the JPEGs of Debian's package
lomiri-wallpapers-16.04: python photographs.py FOLDER OUT.

Each photograph is shrunk to about 1000 pixels on its short side; of 400 random squares of 256
pixels those with most detail are taken that overlap little.
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image

SIDE = 256
# Pieces of each photograph; all are CC BY 4.0 or CC0, see ORIGIN.md.
PICTURES = {
    "train": {
        "aitzgorri_by_Aitzol_Berasategi": 5,
        "life_by_Aitzol_Berasategi": 6,
        "Picture_0B_by_freespace": 4,
        "Picture_1A_by_freespace": 3,
        "seeding_by_Clements_Engelhardt": 6,
        "sunset_by_Aitzol_Berasategi": 6,
    },
    "test": {"picosdeeuropa_by_Aitzol_Berasategi": 4, "friends_by_Aitzol_Berasategi": 3, "Wine_by_Jakkub_Mede": 3},
}


def pieces(path, count, rng):
    image = Image.open(path, formats=("JPEG",)).convert("RGB")
    short = min(image.size)
    scale = max(short / 1000, 1.0 if short < 1200 else 2.0)
    pixels = np.asarray(image.resize((round(image.width / scale), round(image.height / scale)), Image.Resampling.LANCZOS))
    grey = pixels.mean(-1)
    found = []
    for _ in range(400):
        y, x = int(rng.integers(grey.shape[0] - SIDE + 1)), int(rng.integers(grey.shape[1] - SIDE + 1))
        piece = grey[y : y + SIDE, x : x + SIDE]
        found.append((np.abs(np.diff(piece, axis=0)).mean() + np.abs(np.diff(piece, axis=1)).mean(), y, x))
    taken, kept = np.zeros(grey.shape, bool), []
    for _, y, x in sorted(found, reverse=True):
        if taken[y : y + SIDE, x : x + SIDE].mean() <= 0.15 and len(kept) < count:
            taken[y : y + SIDE, x : x + SIDE] = True
            kept.append(pixels[y : y + SIDE, x : x + SIDE])
    return kept


def main(folder, out):
    rng, arrays = np.random.default_rng(0), {}
    for split, pictures in PICTURES.items():
        number = 0
        for name, count in pictures.items():
            for piece in pieces(pathlib.Path(folder) / f"{name}.jpg", count, rng):
                buffer = io.BytesIO()
                Image.fromarray(piece).save(buffer, "JPEG", quality=93, subsampling=0)
                arrays[f"{split}_{number:02}_{name.split('_by_')[0]}"] = np.frombuffer(buffer.getvalue(), np.uint8)
                number += 1
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Makes JPEGs of 500 x 375 from photographs of scikit-image: python photographs.py FOLDER."""

import pathlib
import sys

import numpy as np
import skimage.data
from PIL import Image

# Photographs in the package itself: nothing is downloaded.
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
COUNT, WIDTH, HEIGHT, QUALITY = 256, 500, 375, 90
NOISE = 2.0  # standard deviation of a camera's noise, of 255; enlarging had removed the original noise


def photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns a random part with sides 4 to 3, flipped at random, of random brightness."""
    scale = rng.uniform(0.6, 1.0) * min(image.width / WIDTH, image.height / HEIGHT)
    width, height = int(WIDTH * scale), int(HEIGHT * scale)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    part = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    pixels = np.asarray(part)[:, :: rng.choice((-1, 1))] * rng.uniform(0.8, 1.2) + rng.normal(0, NOISE, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def main(folder: pathlib.Path) -> None:
    images = [Image.fromarray(getattr(skimage.data, name)()[..., :3]) for name in NAMES]
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = folder / NAMES[i % len(NAMES)] / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(images[i % len(NAMES)], rng).save(path, quality=QUALITY)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""The likeliest classes of images: python -m vitlab.predict --workdir=DIR IMAGE...

An image that cannot be read gets one line on stderr, the others are still predicted, and the exit code is 2.
"""

import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8

from vitlab import cli
from vitlab.config import ConfigError
from vitlab.data import DecodeError, decode
from vitlab.data.augment import resize_and_center_crop
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import Trained, from_run


def main(argv: Sequence[str]) -> int:
    """Prints, for each image, its name and a line per class."""
    parser = cli.Parser(prog="python -m vitlab.predict", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="the run folder of a model that was trained here")
    parser.add_argument("--top", type=int, default=5, help="classes per image")
    parser.add_argument("images", nargs="+", type=pathlib.Path, metavar="IMAGE")
    args = parser.parse_args(argv)
    cli.begin()
    trained = from_run(args.workdir, make_mesh(devices=jax.local_devices()[:1]))  # one image at a time keeps no more busy
    run = jax.jit(lambda weights, images: jax.nn.softmax(trained.model.apply(weights, images)[0]))
    code = 0
    for path in args.images:
        try:
            image = read_image(path, trained)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            code = cli.EXIT_USAGE
            continue
        print(f"{path}\n{table(np.asarray(run(trained.weights, image[None]))[0], trained.class_names, args.top)}")
    return code


def read_image(path: pathlib.Path, trained: Trained) -> UInt8[np.ndarray, "h w c"]:
    """An image file as the model's evaluation wants it.

    Raises:
      ConfigError: It cannot be read or decoded.
    """
    try:
        pixels = decode(path.read_bytes(), trained.channels)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ConfigError(f"{path} is no image that can be decoded ({error})") from error
    recipe = trained.model.preprocessing
    crop_fraction = recipe.crop_fraction if trained.experiment.augment.crop == "random_resized" else 1.0
    return resize_and_center_crop(pixels, recipe.image_size, recipe.interpolation, crop_fraction)


def table(probabilities: Float[np.ndarray, " classes"], class_names: Sequence[str], top: int) -> str:
    """The likeliest classes, a line each: probability and name."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return "\n".join(f"  {probabilities[i]:6.1%}  {class_names[i] if i < len(class_names) else i}" for i in order)


if __name__ == "__main__":
    cli.run(main)

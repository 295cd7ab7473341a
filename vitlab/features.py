"""Features of pictures as an array: python -m vitlab.features --model=NAME --weights=FILE
--output=FILE IMAGE...

The model is one of the zoo with published weights (a file, or a short name of `python -m
vitlab.models --weights`), or that of a run folder (--workdir). Its head is not used. *.npy holds a
row for each picture, float32, in the order of the pictures; *.npz has it as "features", their files
as "paths", and with --maps the last map [pictures, rows, columns, width] as "maps".
--picture=FILE.png draws the maps of the first pictures beside them, their first three principal
components as colours.

IMAGE is a file, a folder (with its subfolders), a pattern such as 'photos/**/*.jpg', or @list.txt.
A picture that cannot be read gets one line on stderr and no row. Exit codes: 0 all pictures have a
row; 2 the command or the model cannot be used, or some pictures have none.
"""

import argparse
import dataclasses
import io
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from vitlab import cli
from vitlab.config import ConfigError, Experiment, ModelConfig
from vitlab.data.image_list import find_images
from vitlab.drawing.principal import principal_colours
from vitlab.drawing.sheet import contact_sheet
from vitlab.files import write_atomically
from vitlab.printable import printable
from vitlab.runs.arguments import add_image_arguments, add_model_arguments, check_model_arguments
from vitlab.runs.loaded import LoadedRun, one_device, prepared_batches
from vitlab.runs.trained import Trained, from_run, from_weights, without_head

_DRAWN = 16  # pictures whose maps are drawn


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Features of the pictures that could be read, in their order."""

    paths: tuple[str, ...]
    features: Float[np.ndarray, "n d"]
    maps: Float[np.ndarray, "m h w c"] | None  # the last map: of all pictures, of the first ones, or None
    pixels: UInt8[np.ndarray, "drawn height width channels"] | None  # the first pictures, as the model sees them


def main(argv: Sequence[str]) -> int:
    """The command."""
    args, overrides = _arguments(argv)
    paths = find_images(args.images, args.list)
    cli.begin()
    run = LoadedRun(_trained(args, overrides))
    found = features_of(run, paths, batch_size=args.batch_size, maps=len(paths) if args.maps else _DRAWN * bool(args.picture))
    if not found.paths:
        raise ConfigError(f"none of the {len(paths)} pictures could be read")
    try:
        write_atomically(args.output, _bytes_of(found, args.output.suffix, with_maps=args.maps))
        if args.picture:
            write_atomically(args.picture, draw(found))
    except OSError as error:
        raise ConfigError(f"{error.filename or args.output} cannot be written: {error.strerror or error}") from error
    rows, width = found.features.shape
    print(f"{printable(args.output)}: features of {rows} pictures, {width} numbers each" + f"; {args.picture}" * bool(args.picture))
    return cli.EXIT_USAGE if rows < len(paths) else 0


def features_of(run: LoadedRun, paths: Sequence[str], *, batch_size: int = 64, maps: int = 0) -> Found:
    """Features of files; of the first `maps` also the last map, and the pixels of those that are
    drawn.

    Pictures that cannot be read are said on stderr and left out.
    """
    kept, vectors, planes, pictures = [], [], [], []
    for batch in prepared_batches(run, paths, batch_size):
        pixels = []
        for path, image in batch:
            if isinstance(image, str):
                print(f"error: {printable(path)} {printable(image)}", file=sys.stderr)
            else:
                kept.append(path)
                pixels.append(image)
        if not pixels:
            continue
        vectors.append(run.logits(np.stack(pixels)))
        wanted = pixels[: max(maps - sum(map(len, planes)), 0)]
        if wanted:
            planes.append(run.maps(np.stack(wanted))[-1])
            pictures += wanted[: max(_DRAWN - len(pictures), 0)]
    return Found(
        paths=tuple(kept),
        features=np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32),
        maps=np.concatenate(planes) if planes else None,
        pixels=np.stack(pictures) if pictures else None,
    )


def draw(found: Found) -> bytes:
    """A PNG of the first pictures, each above its map in colours."""
    assert found.maps is not None and found.pixels is not None
    count, height, width, _ = found.pixels.shape
    colours = principal_colours(found.maps[:count])
    pixels = np.broadcast_to(found.pixels, (count, height, width, 3))
    large = [cv2.resize(one, (width, height), interpolation=cv2.INTER_NEAREST) for one in colours]
    images = np.stack([np.concatenate(pair) for pair in zip(pixels, large, strict=True)])
    sheet = contact_sheet(images, [[(pathlib.Path(path).name, "")] for path in found.paths[:count]])
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _bytes_of(found: Found, suffix: str, *, with_maps: bool) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, found.features)
    else:
        maps: dict[str, Any] = {"maps": found.maps} if with_maps and found.maps is not None else {}
        np.savez(buffer, features=found.features, paths=np.array(found.paths), **maps)
    return buffer.getvalue()


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = cli.Parser(
        prog="python -m vitlab.features",
        description=__doc__,
        example="python -m vitlab.features --model=dinov2_small_patch14 --weights=dinov2 --output=features.npz --picture=maps.png photos",
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", required=True, help="*.npz or *.npy to write")
    parser.add_argument("--maps", action="store_true", help="also keep the last map of every picture, in *.npz")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE", help=f"*.png of the maps of the first {_DRAWN} pictures")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures that go through the model at once; 64 by default")
    add_image_arguments(parser)
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    check_model_arguments(args)
    if args.batch_size < 1:
        raise ConfigError(f"--batch_size={args.batch_size} must be at least 1")
    if args.workdir and overrides:
        raise ConfigError("--config.model.* describe a checkpoint of others (--model); a run folder has its own")
    if args.maps and args.output.suffix != ".npz":
        raise ConfigError(f"--maps needs --output=*.npz, which holds several arrays, not {args.output}")
    for name, suffixes in (("output", (".npz", ".npy")), ("picture", (".png",))):
        path = getattr(args, name)
        if path is not None and (path.suffix not in suffixes or not path.parent.is_dir()):
            raise ConfigError(f"--{name}={path} must be a file *{' or *'.join(suffixes)} in a folder that exists")
    return args, overrides


def _trained(args: argparse.Namespace, overrides: dict[str, str]) -> Trained:
    if args.workdir:
        return without_head(from_run(args.workdir, one_device(), raw=args.raw, step=args.step))
    experiment = cli.override(Experiment(model=ModelConfig(name=args.model)), overrides)
    return from_weights(args.model, args.weights, experiment, (), one_device(), head=False)


if __name__ == "__main__":
    cli.run(main)

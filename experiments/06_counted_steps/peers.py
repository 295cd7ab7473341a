"""Another project's training step, counted as ours are; its sources are fetched by the reader.

Run: git clone https://github.com/google-research/big_vision PATH
     python experiments/06_counted_steps/peers.py PATH [S/16 B/16]
     python experiments/06_counted_steps/peers.py --table
The model is the peer's own file; the step around it is cross entropy, clipping and AdamW of optax.
It is counted with one and with two blocks, and the difference multiplied.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import run as ours  # noqa: E402

from vitlab.plan.profile import profile, scheduled  # noqa: E402
from vitlab.plan.topology import Topology  # noqa: E402

PEERS = HERE / "peers.csv"
CLASSES, SIDE = 1000, 224  # pixels per side
OURS = {"S/16": "vit_small_patch16", "B/16": "vit_base_patch16"}


def big_vision(path: str, variant: str, depth: int) -> Any:
    """big_vision's ViT with mean pooling, products in bfloat16, and so many blocks."""
    sys.path.insert(0, path)
    for name in ("big_vision.utils", "big_vision.models.common"):  # for checkpoints only; they import TensorFlow
        sys.modules[name] = types.ModuleType(name)
    import big_vision
    import big_vision.models

    big_vision.utils, big_vision.models.common = sys.modules["big_vision.utils"], sys.modules["big_vision.models.common"]
    from big_vision.models import vit

    return vit._Model(CLASSES, **{**vit.decode_variant(variant), "depth": depth, "dtype_mm": "bfloat16", "posemb": "sincos2d"})


def step_of(model: Any) -> tuple[Callable[..., Any], Any]:
    """The step, and shapes of its arguments: parameters, optimizer state, images, labels."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-4))
    images = jax.ShapeDtypeStruct((ours.IMAGES, SIDE, SIDE, 3), jnp.uint8)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(images.shape)))["params"]

    def step(params, state, images, labels):
        def loss(params):
            logits, _ = model.apply({"params": params}, images.astype(jnp.float32) / 127.5 - 1, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step, (params, jax.eval_shape(optimizer.init, params), images, jax.ShapeDtypeStruct((ours.IMAGES,), jnp.int32))


def count(path: str, variant: str, depth: int) -> float:
    """Milliseconds of the step of so many blocks."""
    topology = Topology.of("v5e:1x1")
    with scheduled() as schedules:
        mesh = Mesh(np.array(topology.devices()), ("data",))
        step, arguments = step_of(big_vision(path, variant, depth))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            here = NamedSharding(mesh, PartitionSpec())
            compiled = jax.jit(step, in_shardings=here, out_shardings=here, donate_argnums=(0, 1)).trace(*arguments).lower().compile()
        return sum(each.milliseconds for each in profile(compiled.as_text() or "", topology.device, schedules))


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(PEERS.open(newline=""))) if PEERS.exists() else []


def table() -> str:
    """big_vision's step beside ours."""
    counted: dict[str, float] = {}
    for row in ours.rows():
        if row["part"] != "limit":
            counted[row["model"]] = counted.get(row["model"], 0.0) + float(row["ms"])
    lines = ["| network | big_vision, ms | vitlab, ms | ratio |", "|" + "---|" * 4]
    for row in rows():
        mine = counted.get(OURS[row["variant"]])
        said = (f"{mine:.1f}", f"{float(row['ms']) / mine:.2f}") if mine else ("-", "-")
        lines.append(f"| ViT-{row['variant']} | {float(row['ms']):.1f} | {' | '.join(said)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", nargs="?", help="folder of big_vision's sources")
    parser.add_argument("variants", nargs="*", default=list(OURS))
    parser.add_argument("--depth", type=int, help="count so many blocks in this process")
    parser.add_argument("--table", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    if args.table:
        ours.write_table("peers.py", table())
        return
    if args.depth:
        print(json.dumps(count(args.path, args.variants[0], args.depth)))
        return
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    for variant in args.variants:
        one, two = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, args.path, variant, "--depth", str(depth)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                ).stdout.splitlines()[-1]
            )
            for depth in (1, 2)
        )
        new = not PEERS.exists()
        with PEERS.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(("peer", "variant", "ms"))
            writer.writerow(("big_vision", variant, round(one + 11 * (two - one), 2)))  # both have 12 blocks
        print(rows()[-1], flush=True)


if __name__ == "__main__":
    main()

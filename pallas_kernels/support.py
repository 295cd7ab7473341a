"""Tables of the arguments that each implementation supports, made from the predicates that choose
it: python -m pallas_kernels.support OP.
"""

import importlib
from collections.abc import Sequence

import jax
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels.command_line import Parser, one_of
from pallas_kernels.compile import abstract_arguments, operators

H100 = ("gpu", "NVIDIA H100 80GB HBM3")
DEVICES = {
    "pallas_tpu": ("tpu", "TPU v5 lite"),
    "pallas_gpu": H100,
    "triton": H100,
    "mosaic_gpu": H100,
    "cudnn": H100,
}  # others run anywhere


def reason(op: str, implementation: str, shape, dtype) -> str | None:
    """Why an implementation cannot run a shape on the device it is for, or None if it can."""
    package = importlib.import_module(f"pallas_kernels.{op}")
    predicate = package.IMPLEMENTATIONS[implementation].unsupported_reason
    args, dynamic, static = abstract_arguments(shape, dtype)
    platform, kind = DEVICES.get(implementation, ("cpu", "cpu"))
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        reasons = []  # the predicate asks for shapes and dtypes alone

        def ask(args, dynamic) -> None:
            reasons.append(predicate(*args, **package.canonical(*args, **dynamic, **static)))

        jax.eval_shape(ask, args, dynamic)
    return reasons[0]


def markdown(op: str) -> str:
    """A row for each probe of the operator's shapes, a column for each implementation."""
    names = list(importlib.import_module(f"pallas_kernels.{op}").IMPLEMENTATIONS)
    lines = ["| arguments | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for probe, (shape, dtype) in importlib.import_module(f"pallas_kernels.{op}.shapes").PROBES.items():
        cells = ["yes" if (why := reason(op, name, shape, dtype)) is None else f"no: {why}" for name in names]
        lines.append(f"| {probe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        prog="python -m pallas_kernels.support",
        description=__doc__ or "",
        example="python -m pallas_kernels.support window_attention",
    )
    parser.add_argument("op", type=one_of("operator", operators()), help=f"one of {', '.join(operators())}")
    print(markdown(parser.parse_args(argv).op))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

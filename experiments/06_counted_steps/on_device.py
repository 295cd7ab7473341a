"""Parts that `on_gpu.py` and `on_tpu.py` share: values of all kernels against their definitions,
times of steps and operators, within a limit of time, row by row into a CSV file.
"""

import argparse
import csv
import dataclasses
import functools
import importlib
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.benchmark import measure as measure_operator
from pallas_kernels.benchmark import versions
from pallas_kernels.depthwise import depthwise
from pallas_kernels.depthwise import unsupported_reason as no_depthwise
from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.normed import Norm, norm_linear, norm_mlp
from pallas_kernels.normed import unsupported_reason as no_norm
from vitlab.benchmark import append, measure
from vitlab.config import ModelConfig

OPERATORS = ("attention", "window_attention", "neighborhood_attention")
# Over the largest value of an array, as in the tests of the kernels: three roundings of bfloat16 by
# half a unit; float32 sums in another order.
TOLERANCE = {"bfloat16": 3 * 2**-8, "float32": 64 * 2**-24}
IMAGES = 64  # images of a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison of values, or one time."""

    what: str  # values, step, operator
    name: str  # name of the model, or operator and shape
    system: str  # implementation, or whose network
    dtype: str
    milliseconds: float | None = None  # median
    deviation: float | None = None  # largest one from the definition, over the largest value of its array
    note: str = ""
    device: str = ""
    versions: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A row to be made."""

    what: str
    name: str
    system: str
    dtype: str
    run: Callable[[float], tuple[float | None, float | None, str]]  # seconds left -> milliseconds, deviation, note


def deviation(ours: Any, theirs: Any) -> float:
    """Largest deviation over all arrays, each in units of its largest value."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    arrays = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs]
    largest = max(np.abs(b).max() for _, b in arrays)
    return float(max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6 * largest) for a, b in arrays))


def _value_and_grads(fn: Callable[..., Any], *arguments: Any) -> Any:
    """The result of fn and its pull-back, compiled as one."""

    @jax.jit
    def run(arguments):
        out, back = jax.vjp(lambda arguments: fn(*arguments), arguments)
        return out, back(_normal(*out.shape).astype(out.dtype))

    return run(arguments)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _compared(ours: Callable[..., Any], formula: Callable[..., Any], arguments: Sequence[Any], most: float) -> tuple[None, float, str]:
    with jax.default_matmul_precision("highest"):
        expected = _value_and_grads(formula, *_wide(arguments))
    off = deviation(_value_and_grads(ours, *arguments), expected)
    return None, off, "" if off < most else f"above the tolerance of {most:.2g}"


def attention_values(*, interpret: bool, small: bool) -> Iterator[Task]:
    """Every implementation of every operator that can run here, forward and backward."""
    for op in OPERATORS:
        package, shapes = (importlib.import_module(f"pallas_kernels.{op}{part}") for part in ("", ".shapes"))
        models = {} if small else {name: shape.downsized() for name, shape in shapes.MODELS.items()}
        nasty = list(shapes.NASTY.items())
        for name, shape in [*models.items(), *(nasty[1:3] if small else nasty)]:
            for system in (name for name in package.IMPLEMENTATIONS if name != "reference"):
                for dtype in ("bfloat16",) if interpret else ("bfloat16", "float32"):
                    run = functools.partial(_attention_values, op=op, shape=shape, system=system, dtype=dtype, interpret=interpret)
                    yield Task(what="values", name=f"{op} {name}", system=system, dtype=dtype, run=run)


def _attention_values(_: float, *, op: str, shape: Any, system: str, dtype: str, interpret: bool) -> tuple[None, float, str]:
    package = importlib.import_module(f"pallas_kernels.{op}")
    arrays, options = shape.arguments(dtype)
    bias = options.pop("bias", None)
    wide = {key: _wide(x) if isinstance(x, jax.Array) and x.dtype == dtype else x for key, x in options.items()}
    if interpret and system.startswith("pallas"):
        ours = functools.partial(_interpreted, package, system, **options)
    else:
        ours = functools.partial(getattr(package, op), **options, implementation=system)
    formula = functools.partial(getattr(package, op), **wide, implementation="reference")
    if bias is None:
        return _compared(ours, formula, arrays, TOLERANCE[dtype])
    ours, formula = (functools.partial(_with_bias, fn) for fn in (ours, formula))
    return _compared(ours, formula, (*arrays, bias), TOLERANCE[dtype])


def _interpreted(package: Any, system: str, *arrays: Any, **options: Any) -> Any:
    """An implementation in the interpreter of kernels, which dispatch never chooses."""
    chosen, options = package.IMPLEMENTATIONS[system], package.canonical(*arrays, **options)
    if reason := chosen.unsupported_reason(*arrays, **options, interpret=True):
        raise UnsupportedError(reason)
    out = chosen.fn(*arrays, **options, interpret=True)
    return out[0] if isinstance(out, tuple) else out  # without the logarithms of sums


def _with_bias(fn: Callable[..., Any], *arrays: Any) -> Any:
    """fn of the arrays but the last, which is its bias."""
    return fn(*arrays[:-1], bias=arrays[-1])


def layer_values(*, interpret: bool) -> Iterator[Task]:
    """The kernels that have no table of implementations."""
    for n, dim in ((5, 32), (196, 384)):
        for name, layers in (("norm_linear", 1), ("norm_mlp", 2)):
            run = functools.partial(_norm_values, n=n, dim=dim, layers=layers, interpret=interpret)
            yield Task(what="values", name=f"{name} {n} x {dim}", system="pallas_tpu", dtype="bfloat16", run=run)
    for side, dim, size in ((7, 24, 3), (14, 192, 7), (9, 40, 11)):
        run = functools.partial(_depthwise_values, side=side, dim=dim, size=size, interpret=interpret)
        yield Task(what="values", name=f"depthwise {side} x {dim}, {size}", system="pallas_tpu", dtype="bfloat16", run=run)


def _norm_values(_: float, *, n: int, dim: int, layers: int, interpret: bool) -> tuple[None, float, str]:
    """LayerNorm and one product, or two with GELU between."""
    widths = (dim, 4 * dim, dim)[: layers + 1]
    parameters = [1 + _normal(dim, scale=0.1), _normal(dim)]
    for before, after in itertools.pairwise(widths):
        parameters += [_normal(before, after, scale=before**-0.5), _normal(after)]
    x = _normal(4, n, dim).astype(jnp.bfloat16)
    if reason := no_norm(x.shape, x.dtype, widths[1:], interpret=interpret):
        raise UnsupportedError(reason)

    def ours(x, scale, bias, *rest):
        return (norm_linear, norm_mlp)[layers - 1](x, *rest, norm=Norm(scale, bias, 1e-6), interpret=interpret)

    def formula(x, scale, bias, *rest):
        x -= x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale + bias
        x = x @ rest[0] + rest[1]
        return x if layers == 1 else jax.nn.gelu(x, approximate=False) @ rest[2] + rest[3]

    return _compared(ours, formula, (x, *parameters), TOLERANCE["bfloat16"])


def _depthwise_values(_: float, *, side: int, dim: int, size: int, interpret: bool) -> tuple[None, float, str]:
    pads = ((size // 2, size // 2), (size // 2, size // 2))
    x, kernel = _normal(2, side, side, dim).astype(jnp.bfloat16), _normal(size, size, dim)
    if reason := no_depthwise(x.shape, x.dtype, (size, size), pads=pads, interpret=interpret):
        raise UnsupportedError(reason)

    def formula(x, kernel):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": dim}
        return jax.lax.conv_general_dilated(x, kernel[:, :, None], (1, 1), pads, **options)

    return _compared(lambda x, kernel: depthwise(x, kernel, pads=pads, interpret=interpret), formula, (x, kernel), TOLERANCE["bfloat16"])


def _normal(*shape: int, scale: float = 1.0) -> jax.Array:
    """Random numbers that bfloat16 holds."""
    return (scale * jax.random.normal(jax.random.key(len(shape)), shape)).astype(jnp.bfloat16).astype(jnp.float32)


def our_steps(models: Iterable[str], images: int) -> Iterator[Task]:
    """Whole steps of AdamW, bfloat16."""
    for model in models:

        def run(_: float, model=model):
            got = measure(ModelConfig(name=model, dtype="bfloat16"), batch_size=images, train=True)
            return 1000 * images / got.images_per_second, None, f"compiled in {got.compile_seconds} s, {got.peak_bytes >> 20} MiB"

        yield Task(what="step", name=model, system="vitlab", dtype="bfloat16", run=run)


def operator_times() -> Iterator[Task]:
    """Operators beside those of others: the fastest backward pass, and all times in the note."""
    for op in OPERATORS:
        models = importlib.import_module(f"pallas_kernels.{op}.shapes").MODELS
        for name, shape in models.items():

            def run(_: float, op=op, name=name, batch=shape.size[0]):
                lines = [each for each in measure_operator(op, name, "bfloat16", batch) if each.microseconds]
                said = "; ".join(f"{each.pass_} {each.implementation} {each.microseconds} us" for each in lines)
                times = [each.microseconds for each in lines if each.microseconds and each.pass_ == "backward"]
                return min(times) / 1000 if times else None, None, said

            yield Task(what="operator", name=f"{op} {name}", system="fastest backward", dtype="bfloat16", run=run)


def arguments(doc: str | None, out: pathlib.Path) -> argparse.Namespace:
    """The options of both commands."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--seconds", type=float, default=570, help="nothing begins that would not end by then, as far as is known")
    parser.add_argument("--out", type=pathlib.Path, default=out, help="CSV file; rows that it has are not made again")
    parser.add_argument("--interpret", action="store_true", help="interpret the kernels: a rehearsal where there is no accelerator")
    parser.add_argument("--small", action="store_true", help="a few small shapes and one model of two images, likewise")
    return parser.parse_args()


def work(tasks: Iterable[Task], args: argparse.Namespace) -> int:
    """Makes the rows that the file lacks, in order, until the time is over.

    Returns:
      How many values are off, and how many tasks failed.
    """
    begin, longest, off = time.monotonic(), 0.0, 0
    known = list(csv.DictReader(args.out.open(newline=""))) if args.out.exists() else []
    done = {tuple(row[key] for key in ("what", "name", "system", "dtype")) for row in known}
    device = jax.devices()[0].device_kind
    for task in tasks:
        left = args.seconds - (time.monotonic() - begin)
        about = {"what": task.what, "name": task.name, "system": task.system, "dtype": task.dtype}
        if tuple(about.values()) in done:
            continue
        if left < longest:
            print(f"no time left for {task.what} {task.name} and what follows: call again", flush=True)
            break
        start = time.monotonic()
        try:
            milliseconds, far, note = task.run(left)
        except UnsupportedError as reason:
            milliseconds, far, note = None, None, f"not here: {reason}"
        except Exception as error:  # one failure must not take the others' time
            milliseconds, far, note = None, None, f"failed: {type(error).__name__}: {str(error)[:200]}"
        off += note.startswith(("above", "failed"))
        longest = max(longest if task.what != "step" else 0.0, time.monotonic() - start)
        row = Row(**about, milliseconds=milliseconds, deviation=far, note=note, device=device, versions=versions())
        append(args.out, dataclasses.asdict(row))
        print(*about.values(), *(x for x in (milliseconds, far, note) if x not in (None, "")), flush=True)
    return off

"""Compiles an operator's kernels for devices that are not here, and prints the compilers' figures.

    python -m pallas_kernels.compile v5e window_attention [--shapes NAME ...] [--dtypes DTYPE ...]

prints one line of JSON for each shape, dtype and pass. For TPUs (extra `tpu`) it counts the cycles
of the compiler's schedule: the instruction bundles of each loop's body times its trips, one bundle
a cycle. The count knows nothing of waiting for memory: a kernel takes at least the larger of the
count and its bytes over the bandwidth. For an H100 (extra `cuda13`) it gives registers a thread and
bytes spilled, as ptxas says. Nothing runs: these figures are counted, not measured.
"""

import argparse
import dataclasses
import glob
import importlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec

import pallas_kernels
from pallas_kernels.command_line import Parser, near_misses, one_of
from pallas_kernels.dispatch import UnsupportedError


@dataclasses.dataclass(frozen=True)
class Target:
    """A device to compile for."""

    platform: str
    implementations: tuple[str, ...]  # names in an operator's table that run on this device
    topology: str
    package: str  # Python package that brings the device's compiler
    bytes_per_second: float  # bandwidth of the device's memory
    flops_per_second: float  # peak of bfloat16 products
    cycles_per_second: float | None = None  # clock of the core, where it follows from published figures


# Google's documentation of TPU v5e, v5p and v6e (HBM and peak; a core of v5e has 4 matrix units of
# 128 x 128, so 197e12 / 2**17 Hz); H100 SXM: NVIDIA's data sheet.
TARGETS: Mapping[str, Target] = {
    "v5e": Target("tpu", ("pallas_tpu",), "v5e:2x2", "libtpu", 819e9, 197e12, 1.5e9),
    "v5p": Target("tpu", ("pallas_tpu",), "v5p:2x2x1", "libtpu", 2765e9, 459e12),
    "v6e": Target("tpu", ("pallas_tpu",), "v6e:2x2", "libtpu", 1640e9, 918e12),
    "h100": Target("gpu", ("pallas_gpu", "mosaic_gpu"), "1x1x1", "jax_cuda13_plugin", 3352e9, 989e12),
}

# Flags of the TPU's compiler that make it write schedules, the last of seventy passes.
SCHEDULES = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=^final_bundles"

DTYPES = ("bfloat16", "float16", "float32")  # The compile command compiles an operator for any of these.

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def missing(target: str) -> str | None:
    """Why nothing can be compiled for a target here, or None."""
    package = TARGETS[target].package
    return None if importlib.util.find_spec(package) else f"compiling for {target} needs {package}, which is not installed"


def compile_all(
    target: str,
    op: str,
    shapes: Sequence[str] = (),
    dtypes: Sequence[str] = ("bfloat16", "float32"),
    *,
    implementation: str | None = None,
    fused: bool = False,
    count: bool = True,
) -> list[dict[str, Any]]:
    """Compiles in a process of its own, since compilers read their flags once.

    Args:
      target: A key of TARGETS.
      op: A package of `pallas_kernels`.
      shapes: Names in its `shapes`; all models by default.
      dtypes: Of query, key and value.
      implementation: Of the target's; the first by default.
      fused: Compile `<op>_qkv`, which takes the projection to query, key and value.
      count: Have the compilers write what is counted, which takes a third of the time; else kernels
        are only named.

    Returns:
      For each shape, dtype and pass, "error" or the counted figures.

    Raises:
      RuntimeError: The process failed, or `missing` has a reason.
    """
    if reason := missing(target):
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as dump:
        flags = {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so processes do not exclude each other
        }
        if TARGETS[target].platform == "gpu":
            flags["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false" + (
                f" --xla_dump_to={dump} --xla_dump_emitter_re=ptx" if count else ""
            )
            flags |= {"MOSAIC_GPU_DUMP_TO": dump, "MOSAIC_GPU_DUMP_PTX": "1"} if count else {}
        elif count:
            flags["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} {SCHEDULES}"
        command = [
            sys.executable,
            "-m",
            "pallas_kernels.compile",
            target,
            op,
            "--dump",
            dump,
            "--dtypes",
            *dtypes,
            *(["--implementation", implementation] if implementation else []),
            *(["--fused"] if fused else []),
        ]
        env = {
            name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
        } | flags  # a cached kernel dumps nothing
        done = subprocess.run([*command, *(["--shapes", *shapes] if shapes else [])], capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"compiling {op} for {target} failed:\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def abstract_arguments(shape, dtype) -> tuple[tuple, dict[str, Any], dict[str, Any]]:
    """A shape's arrays, without values; its options that are arrays; its other options."""
    static = {}

    def arrays():
        args, options = shape.arguments(dtype)
        dynamic = {name: x for name, x in options.items() if isinstance(x, jax.Array)}
        static.update({name: x for name, x in options.items() if name not in dynamic})
        return args, dynamic

    args, dynamic = jax.eval_shape(arrays)
    return args, dynamic, static


def passes(op, shape, dtype, implementation: str, *, fused: bool = False) -> dict[str, tuple[Any, tuple]]:
    """The forward and the backward pass as functions, with their abstract arguments.

    `fused` ones take one projection.

    Arrays come and go with heads and channels merged, as projections give and take them: XLA lays
    out a last axis of 32 in registers of 128 lanes, and would copy. A shape whose last axis is all
    channels says so: it has `merged` last axes that are one.
    """
    args, dynamic, static = abstract_arguments(shape, dtype)
    trainable = {name: x for name, x in dynamic.items() if np.issubdtype(x.dtype, np.floating)}
    rest = {name: x for name, x in dynamic.items() if name not in trainable}
    result = args[0]
    if fused:
        args = (jax.ShapeDtypeStruct((*result.shape[:-2], 3, *result.shape[-2:]), result.dtype),)
    axes = getattr(shape, "merged", 2)
    merged = tuple(_merged(x, 3 if fused else axes) for x in args)

    def forward(arrays, trainable, rest):
        arrays = (x.reshape(arg.shape) for x, arg in zip(arrays, args, strict=True))
        out = op(*arrays, **trainable, **rest, **static, implementation=implementation)
        return out.reshape(_merged(out, axes).shape)

    def backward(arrays, trainable, rest, d_out):
        return jax.vjp(lambda arrays, trainable: forward(arrays, trainable, rest), arrays, trainable)[1](d_out)

    return {"forward": (forward, (merged, trainable, rest)), "backward": (backward, (merged, trainable, rest, _merged(result, axes)))}


def _merged(x, axes: int) -> jax.ShapeDtypeStruct:
    """The last axes as one."""
    return jax.ShapeDtypeStruct((*x.shape[:-axes], math.prod(x.shape[-axes:])), x.dtype)


def _topology(target: Target):
    if target.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    return topologies.get_topology_desc(platform="cuda", topology_name=target.topology, topology=target.topology, target_config=H100)


def _count(target: Target, device, dump: str, fn, args) -> dict[str, Any]:
    """Compiles one function and reads what was dumped."""
    for file in glob.glob(f"{dump}/*"):
        os.remove(file)
    sharding = NamedSharding(Mesh(np.array([device]), ("data",)), PartitionSpec())

    def row_major(x):  # XLA likes to put the batch last where it has the choice, and then copies for the kernel
        return Format(Layout(tuple(range(x.ndim))), sharding)

    abstract = AbstractDevice(device_kind=device.device_kind, num_cores=1, platform=target.platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=abstract)):
        results = jax.eval_shape(fn, *args)
        jitted = jax.jit(fn, in_shardings=jax.tree.map(row_major, args), out_shardings=jax.tree.map(row_major, results))
        # Since jax 0.12 the name "gpu", which a device of a topology has, must be that of a device
        # that is here.
        platforms = ("cuda",) if target.platform == "gpu" else (target.platform,)
        compiled = jitted.trace(*args).lower(lowering_platforms=platforms).compile()
    program = compiled.as_text() or ""
    read = tpu_cycles if target.platform == "tpu" else ptxas_facts
    kernels = sorted(set(KERNEL.findall(program)))
    return {"temp_bytes": compiled.memory_analysis().temp_size_in_bytes, "kernels": kernels, **read(dump, program)}


# A Pallas kernel in a compiled program, and its name.
KERNEL = re.compile(
    r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton|mosaic_gpu_v2)"[^\n]*?op_name="[^"]*?(\w+)\)*/(?:pallas_call|mpmd_map)'
)


def tpu_cycles(dump: str, program: str) -> dict[str, Any]:
    """Cycles of each Pallas kernel's schedule, and those that XLA estimates for all else."""
    files = glob.glob(f"{dump}/*-final_bundles.txt")
    cycles = {}
    for kernel in sorted(set(KERNEL.findall(program))):
        texts = [pathlib.Path(f).read_text() for f in files if re.search(rf"{kernel}_*[.\d]*-\d+-final_bundles", f)]
        cycles |= {kernel: sum(map(count_bundles, texts))} if texts else {}
    return {"cycles": cycles, "xla_cycles": sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', program)))}


BUNDLE = re.compile(r"^\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2})?:\s*>*\s*\{", re.MULTILINE)
REGION = re.compile(r"Start region (\d+)")
LAST_TRIP = re.compile(r"(%p\w+) = scmp\.ge\.s32\.totalorder (?:\(!?%p\w+\), )?%\w+, (\d+)")
JUMP = re.compile(r"sbr\.rel \(!(%p\w+)\) target = \$region(\d+)")
DELAY_SLOTS = 4  # bundles after a jump that are carried out before it
PIPELINE_STAGES = 2  # steps that the loop over the grid takes besides those that compute


class UncountableError(ValueError):
    """A schedule that does not tell how often a loop runs."""


def count_bundles(text: str) -> int:
    """Bundles of a schedule, those of loops times their trips; both sides of a branch count.

    A loop begins where the region does that a later bundle jumps back to unless its counter has
    come to its end, and ends with the delay slots of that jump. Bundles of outer loops may lie in
    between, and then count as the inner loop's.

    Raises:
      UncountableError: The trips of a loop are not a constant.
    """
    starts = [match.start() for match in BUNDLE.finditer(text)]
    bundles = [text[start:stop] for start, stop in itertools.pairwise([*starts, len(text)])]
    regions = {region: i for i, bundle in enumerate(bundles) for region in REGION.findall(bundle)}
    trips = {predicate: int(bound) for bundle in bundles for predicate, bound in LAST_TRIP.findall(bundle)}
    times = [1] * len(bundles)
    for i, bundle in enumerate(bundles):
        for predicate, region in JUMP.findall(bundle):
            if (first := regions.get(region, i)) >= i:
                continue  # ahead: a branch
            if predicate not in trips:
                raise UncountableError(f"the schedule does not tell how often the loop of bundles {first} to {i} runs")
            is_grid = "iteration index" in bundles[first]
            for j in range(first, min(i + DELAY_SLOTS + 1, len(bundles))):
                times[j] *= trips[predicate] - (PIPELINE_STAGES if is_grid else 0)
    return sum(times)


def ptxas_facts(dump: str, _: str) -> dict[str, Any]:
    """Registers a thread and bytes of spills of each Pallas kernel."""
    facts = {}
    for file in glob.glob(f"{dump}/*.ptx"):
        if re.search(r"\.entry \w*attention_(forward|backward)\w*\(", pathlib.Path(file).read_text()):
            said = subprocess.run(
                [_ptxas(), "-v", "-arch=sm_90a", file, "-o", "/dev/null"], capture_output=True, text=True, check=True
            ).stderr
            for kernel, about in re.findall(r"entry function '(\w+)'(.*?)(?=entry function|$)", said, re.DOTALL):
                numbers = {name: re.search(rf"{pattern}", about) for name, pattern in PTXAS.items()}
                facts[kernel] = {name: int(found[1]) for name, found in numbers.items() if found}
    return {"ptxas": facts}


PTXAS = {"registers": r"Used (\d+) registers", "spilled_bytes": r"(\d+) bytes spill stores"}


def _ptxas() -> str:
    spec = importlib.util.find_spec("nvidia")
    found = [path for folder in (spec.submodule_search_locations if spec else []) or [] for path in glob.glob(f"{folder}/*/bin/ptxas")]
    return found[0] if found else "ptxas"


def operators() -> list[str]:
    """The packages here that have implementations and shapes."""
    packages = [module.name for module in pkgutil.iter_modules(pallas_kernels.__path__) if module.ispkg]
    return [name for name in packages if importlib.util.find_spec(f"pallas_kernels.{name}.shapes")]


def _shapes(op: str) -> dict[str, Any]:
    """The shapes of an operator by name: those of models, and those that no tile divides."""
    shapes = importlib.import_module(f"pallas_kernels.{op}.shapes")
    return {**shapes.MODELS, **getattr(shapes, "NASTY", {})}


def _figures(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    target = TARGETS[arguments.target]
    device = _topology(target).devices[0]
    package = importlib.import_module(f"pallas_kernels.{arguments.op}")
    op = getattr(package, arguments.op + ("_qkv" if arguments.fused else ""))
    known = _shapes(arguments.op)
    implementation = arguments.implementation or target.implementations[0]
    for name in arguments.shapes or importlib.import_module(f"pallas_kernels.{arguments.op}.shapes").MODELS:
        for dtype in arguments.dtypes:
            for which, (fn, args) in passes(op, known[name], dtype, implementation, fused=arguments.fused).items():
                figures = {"target": arguments.target, "op": op.__name__, "implementation": implementation}
                figures |= {"shape": name, "dtype": dtype, "pass": which}
                try:
                    yield figures | _count(target, device, arguments.dump, fn, args)
                except (UnsupportedError, UncountableError) as error:
                    yield figures | {"error": str(error)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `compile_all` calls it with the flags that it needs."""
    parser = Parser(
        prog="python -m pallas_kernels.compile",
        description=__doc__ or "",
        example="python -m pallas_kernels.compile v5e window_attention",
    )
    parser.add_argument("target", type=one_of("target", TARGETS), help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("op", type=one_of("operator", operators()), help=f"one of {', '.join(operators())}")
    parser.add_argument("--shapes", nargs="+", default=())
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=("bfloat16", "float32"))
    parser.add_argument("--implementation", help="of the target's; the first by default")
    parser.add_argument("--fused", action="store_true", help="the operator that takes the fused projection")
    parser.add_argument("--dump", help="where the compilers were told to write; given by `compile_all`")
    arguments = parser.parse_args(argv)
    for name in arguments.shapes:
        if name not in (known := _shapes(arguments.op)):
            parser.error(f'{arguments.op} has no shape "{name}": {near_misses(name, known)}')
    lines = (
        _figures(arguments)
        if arguments.dump
        else compile_all(
            arguments.target,
            arguments.op,
            arguments.shapes,
            arguments.dtypes,
            implementation=arguments.implementation,
            fused=arguments.fused,
        )
    )
    for line in lines:
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

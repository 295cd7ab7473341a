"""The Pallas kernels of neighborhood attention, interpreted, against the definition in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from pallas_kernels.neighborhood_attention import IMPLEMENTATIONS, UnsupportedError, canonical, neighborhood_attention, pallas_tpu, tiles
from pallas_kernels.neighborhood_attention.shapes import MODELS, NASTY, Shape
from tests.processes import run_script

PALLAS = [name for name in IMPLEMENTATIONS if name.startswith("pallas")]
# Maps of two models, short enough for the interpreter, with the whole maps' remainder at the
# border.
SHAPES = {**NASTY, **{name: MODELS[name].downsized() for name in ("nat_tiny_stage1", "nat_tiny_stage4")}}

# Shapes for Mosaic GPU's interpreter, which takes a second per program of a kernel: one or two per
# kernel and head.
MOSAIC = {
    "rows_beyond_the_end": Shape(size=(1, 100, 2, 64), kernel_size=7, kv_heads=1, extra=3),
    "blocks_that_are_seen_as_a_whole": Shape(size=(1, 8, 16, 1, 64), kernel_size=(8, 16)),
    "strided_and_causal": Shape(size=(1, 12, 16, 1, 64), kernel_size=(4, 9), stride=(2, 1), is_causal=(False, True)),
    "three_axes_of_wide_heads": Shape(size=(1, 2, 8, 11, 1, 128), kernel_size=(2, 3, 4)),
}
MOSAIC_DTYPES = ("bfloat16", "float16", "float16", "bfloat16")

# Each takes seconds in the interpreter. Together these have every feature; the others run with
# `-m slow`.
QUICK = {
    "does_not_divide_the_tile",
    "unequal_classes",
    "causal",
    "maps_side_by_side",
    "grouped_heads",
    "extra_tokens",
    "one_axis",
    "three_axes",
}
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(SHAPES)]

# Largest deviation allowed, relative to the largest value of the definition. Float32: sums of up to
# 343 terms in another order; 17 half units in the last place were seen. Narrow dtypes: three
# roundings (weights or their gradient, operand, result) of half a unit.
TOLERANCE = {"float32": 64 * 2**-24, "bfloat16": 3 * 2**-8, "float16": 3 * 2**-11}


def implementation(name: str, arrays, options):
    """Returns the implementation, interpreted; skips with the predicate's reason."""
    reason = IMPLEMENTATIONS[name].unsupported_reason(*arrays, **canonical(*arrays, **options), interpret=True)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")

    def run(*arrays, **options):
        results = IMPLEMENTATIONS[name].fn(*arrays, **canonical(*arrays, **options), interpret=True)
        return results if options.get("return_logsumexp") else results[0]

    return run


def by_definition(*arrays, **options):
    results = IMPLEMENTATIONS["reference"].fn(*arrays, **canonical(*arrays, **options))
    return results if options.get("return_logsumexp") else results[0]


def split(options):
    """Splits options into arrays that get a gradient, and the rest."""
    arrays = {name: x for name, x in options.items() if isinstance(x, jax.Array)}
    return arrays, {name: x for name, x in options.items() if name not in arrays}


def value_and_grads(fn, arrays, options):
    """Returns results and their pull-back to all arrays, compiled as one."""
    trainable, static = split(options)

    @jax.jit
    def run(arrays, trainable):
        out, pull_back = jax.vjp(lambda arrays, trainable: fn(*arrays, **trainable, **static), arrays, trainable)
        keys = jax.random.split(jax.random.key(9), len(jax.tree.leaves(out)))
        cotangents = [
            jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype) for key, x in zip(keys, jax.tree.leaves(out), strict=True)
        ]
        return out, pull_back(jax.tree.unflatten(jax.tree.structure(out), cotangents))

    return run(arrays, trainable)


def deviation(ours, theirs) -> float:
    """Returns the largest deviation over all arrays, in units of each array's largest value."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(
        np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / (np.abs(np.asarray(b, np.float64)).max() + 1e-30)
        for a, b in pairs
    )


@functools.cache
def expected(name: str, dtype: str):
    """Returns the definition's results in float32, for exact inputs of the narrow dtype.

    Rounding in float32 is far below the tolerance.
    """
    arrays, options = {**SHAPES, **MOSAIC}[name].arguments(dtype)
    wide = lambda x: x.astype(jnp.float32) if isinstance(x, jax.Array) else x  # noqa: E731
    return value_and_grads(
        by_definition, tuple(map(wide, arrays)), {key: wide(x) for key, x in options.items()} | {"return_logsumexp": True}
    )


def results(which: str, name: str, dtype: str):
    """Returns an implementation's results, to be compared with `expected`."""
    arrays, options = {**SHAPES, **MOSAIC}[name].arguments(dtype)
    options |= {"return_logsumexp": True}
    return value_and_grads(implementation(which, arrays, options), arrays, options)


def deviation_in_float32(which: str, name: str) -> float:
    return deviation(results(which, name, "float32"), expected(name, "float32"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", PALLAS)
def test_values_and_gradients_are_those_of_the_definition(which, name):
    assert deviation_in_float32(which, name) < TOLERANCE["float32"]


def tpu_plans(name: str) -> list[tiles.TpuPlan]:
    """Returns the plans of the forward and the backward pass."""
    arrays, options = SHAPES[name].arguments()
    arguments = canonical(*arrays, **options)
    return [pallas_tpu._plan(arrays[0], arguments["axes"], arguments["bias"], backward=backward) for backward in (False, True)]


@pytest.mark.parametrize("name", ["causal", "grouped_heads"])
def test_a_tpu_s_ranges_see_what_tables_do(name, monkeypatch):
    assert all(plan.tabled for plan in tpu_plans(name))
    monkeypatch.setattr(tiles, "TPU_TABLE_BYTES", 0)
    assert not any(plan.tabled for plan in tpu_plans(name))
    assert deviation_in_float32("pallas_tpu", name) < TOLERANCE["float32"]


@pytest.mark.parametrize(("name", "vmem", "counts"), [("extra_tokens", 1_800_000, (2, 4)), ("causal", 2_900_000, (1, 2))])
def test_a_tpu_s_strips_of_a_map_add_up(name, vmem, counts, monkeypatch):
    """In the second case the last strip is shorter than the others."""
    monkeypatch.setattr(pallas_tpu, "usable_vmem", lambda: vmem)
    assert tuple(plan.strips.count for plan in tpu_plans(name)) == counts
    assert deviation_in_float32("pallas_tpu", name) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", PALLAS)
def test_windows_as_large_as_the_classes_without_a_logsumexp(which, dtype):
    """The TPU kernel then attends within a grid."""
    arrays, options = SHAPES["window_as_large_as_the_classes"].arguments(dtype)
    ours = value_and_grads(implementation(which, arrays, options), arrays, options)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if isinstance(x, jax.Array) else x, (arrays, options))
    assert deviation(ours, value_and_grads(by_definition, *wide)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [pytest.param("does_not_divide_the_tile", marks=pytest.mark.slow), "unequal_classes"])
@pytest.mark.parametrize("which", PALLAS)
def test_narrow_dtypes_round_three_times(which, name, dtype):
    ours = results(which, name, dtype)
    assert ours[0][0].dtype == dtype
    assert deviation(ours, expected(name, dtype)) < TOLERANCE[dtype]


def check_mosaic_gpu() -> None:
    """Compares values and gradients of all MOSAIC shapes; the next test runs it in a process."""
    for (name, shape), dtype in zip(MOSAIC.items(), MOSAIC_DTYPES, strict=True):
        ours = results("mosaic_gpu", name, dtype)
        assert ours[0][0].shape == shape.size, name
        assert (off := deviation(ours, expected(name, dtype))) < TOLERANCE[dtype], (name, off)


def test_mosaic_gpu_s_values_and_gradients_are_those_of_the_definition():
    """Warpgroups wait for each other in the interpreter, each in a thread of XLA's.

    By default XLA has as many threads as the machine has cores.
    """
    run_script(f"from {__name__} import check_mosaic_gpu; check_mosaic_gpu()", NPROC="16")


def test_mosaic_gpu_lowers_for_gpus_that_are_not_here_each_with_its_images():
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=1, platform="gpu")
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    x = jax.ShapeDtypeStruct((4, 64, 60, 2, 64), jnp.bfloat16)

    def loss(query, key, value):
        return neighborhood_attention(query, key, value, kernel_size=13, implementation="mosaic_gpu").astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        step = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2)), in_shardings=NamedSharding(mesh, PartitionSpec("data")))
        program = step.trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in program.splitlines() if "mosaic_gpu_v2" in line]
    assert len(calls) == 3  # one forward, one for the gradient of queries, one for those of keys and values
    assert all("tensor<2x64x1x64x128xbf16>" in line for line in calls)  # two images per device; columns are padded to whole pairs of tiles


@pytest.mark.parametrize(
    ("device", "dilation", "bias", "reason"),
    [
        ("cpu", 1, False, "it needs an NVIDIA GPU, not cpu"),
        ("NVIDIA A100-SXM4-40GB", 1, False, "it needs a Hopper GPU (wgmma), not NVIDIA A100-SXM4-40GB"),
        ("NVIDIA H100 80GB HBM3", 2, False, "it has no dilation"),
        ("NVIDIA H100 80GB HBM3", 1, True, "it has no bias"),
    ],
)
def test_mosaic_gpu_says_what_it_cannot(device, dilation, bias, reason):
    platform = "cpu" if device == "cpu" else "gpu"
    mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice(device_kind=device, num_cores=1, platform=platform))
    arrays = [jax.ShapeDtypeStruct((2, 8, 8, 2, 64), jnp.bfloat16)] * 3
    table = {"bias": jax.ShapeDtypeStruct((2, 5, 5), jnp.float32)} if bias else {}
    call = functools.partial(neighborhood_attention, kernel_size=3, dilation=dilation, implementation="mosaic_gpu")
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(UnsupportedError, match=re.escape(reason)):
        jax.eval_shape(call, *arrays, **table)

"""The kernels compile for absent devices, copy no map, and take known cycles."""

import functools
import math

import pytest

from pallas_kernels.compile import TARGETS, compile_all, missing
from pallas_kernels.neighborhood_attention.shapes import MODELS

# a bias with folded images; head_dim 64 on one axis; three axes with dilation
NASTIEST = ["does_not_divide_the_tile", "one_axis", "three_axes"]
# These are NAT-T's stages. Times of their forward and backward pass on TPU v5e, relative to the
# least traffic over the memory's bandwidth, are bounded by the aims. Backward, libtpu 0.0.42 gives
# 2.95, 2.89 and 2.47, and 0.0.52 gives 3.00, 2.95 and 2.54.
STAGES = ["nat_tiny_stage1", "nat_tiny_stage2", "nat_tiny_stage3"]
AIMS = {"forward": 2.5, "backward": 3.0}


def compiled_or_skipped(target: str, shapes: list[str], dtype: str = "bfloat16", **options):
    if reason := missing(target):
        pytest.skip(reason)
    return compile_all(target, "neighborhood_attention", shapes, [dtype], **options)


@functools.cache
def compiled(target: str, model: bool):
    if model:
        return compiled_or_skipped(target, STAGES if target == "v5e" else STAGES[:1])
    main = target in ("v5e", "h100")
    results = compiled_or_skipped(target, NASTIEST if main else NASTIEST[:1], count=False)
    return results + (compiled_or_skipped(target, NASTIEST[:1], "float32", count=False) if main else [])


@pytest.mark.parametrize("target", [pytest.param(name, marks=getattr(pytest.mark, target.platform)) for name, target in TARGETS.items()])
def test_every_kind_of_argument_compiles(target):
    results = compiled(target, model=False)
    assert len(results) == (len(NASTIEST) * 2 + 2 if target in ("v5e", "h100") else 2)
    for result in results:
        assert "error" not in result, result
        assert any(f"neighborhood_attention_{result['pass']}" in kernel for kernel in result["kernels"]), result


@pytest.mark.parametrize("target", [pytest.param("v5e", marks=pytest.mark.tpu), pytest.param("h100", marks=pytest.mark.gpu)])
def test_a_model_s_map_is_never_copied(target):
    for result in compiled(target, model=True):
        assert result["temp_bytes"] < math.prod(MODELS[result["shape"]].size) * 2 / 4, result


@pytest.mark.tpu
@pytest.mark.parametrize("shape", STAGES)
@pytest.mark.parametrize("which", AIMS)
def test_the_counted_cycles_are_within_the_aim(shape, which):
    (result,) = (x for x in compiled("v5e", model=True) if (x["shape"], x["pass"]) == (shape, which))
    device = TARGETS["v5e"]
    least = MODELS[shape].bytes("bfloat16", backward=which == "backward") / device.bytes_per_second
    counted = (sum(result["cycles"].values()) + result["xla_cycles"]) / device.cycles_per_second
    assert counted / least < AIMS[which], result


# Maps of two and three axes, of 64 and 128 channels; a window of 7, and one that covers whole
# blocks.
MOSAIC = ["map64_head64", "flux_4k", "hunyuan_video"]


@pytest.mark.gpu
def test_mosaic_gpu_compiles_and_hardly_spills():
    results = compiled_or_skipped("h100", MOSAIC, implementation="mosaic_gpu")
    assert len(results) == len(MOSAIC) * 2
    for result in results:
        assert "error" not in result, result
        backward = ["backward_keys", "backward_queries"] if result["pass"] == "backward" else []
        assert result["kernels"] == [f"neighborhood_attention_{name}" for name in (*backward, "forward")], result
        assert len(result["ptxas"]) == len(result["kernels"])
        for kernel, facts in result["ptxas"].items():
            assert facts["spilled_bytes"] <= (128 if "backward" in kernel else 0), result

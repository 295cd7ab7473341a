"""The kernels compile for absent devices, copy no map, and reach their aims in cycles."""

import functools
import math

import pytest

from pallas_kernels.compile import TARGETS, UncountableError, compile_all, count_bundles, main, missing
from pallas_kernels.window_attention.shapes import MODELS, NASTY

NASTIEST = ["overhang_of_the_grid", "masked_and_shifted", "oblong_window", "no_bias_shifted_and_masked"]  # head_dim 32, 32, 64, 128
MODEL = "swin_tiny_stage1_shifted"
# Times are relative to the least traffic over the memory's bandwidth; the aims are for TPU v5e.
AIMS = {"forward": 2.5, "backward": 3.0}


@functools.cache
def compiled(target: str, model: bool, fused: bool):
    if reason := missing(target):
        pytest.skip(reason)
    if model:
        return compile_all(target, "window_attention", [MODEL], ["bfloat16"], fused=fused)
    dtypes = ["float32", "float16"] if target == "h100" else ["float32", "bfloat16"]
    return compile_all(target, "window_attention", NASTIEST, dtypes if target in ("v5e", "h100") else dtypes[:1], count=False)


@pytest.mark.parametrize("target", [pytest.param(name, marks=getattr(pytest.mark, target.platform)) for name, target in TARGETS.items()])
def test_every_kind_of_argument_compiles(target):
    results = compiled(target, False, False)
    assert len(results) == len(NASTIEST) * 2 * (2 if target in ("v5e", "h100") else 1)
    for result in results:
        assert "error" not in result, result
        assert result["kernels"] == [f"window_attention_{result['pass']}"], result  # every kernel is present in the program


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("target", [pytest.param("v5e", marks=pytest.mark.tpu), pytest.param("h100", marks=pytest.mark.gpu)])
def test_a_model_s_map_is_never_copied(target, fused):
    one_map = math.prod(MODELS[MODEL].size) * 2
    for result in compiled(target, True, fused):
        assert result["temp_bytes"] < one_map / 2, result  # partial bias gradients, and 32 MiB of work space for cuBLAS


@pytest.mark.tpu
@pytest.mark.parametrize("which", sorted(AIMS))
def test_the_counted_cycles_are_within_the_aim(which):
    (result,) = (x for x in compiled("v5e", True, False) if x["pass"] == which)
    device = TARGETS["v5e"]
    least = MODELS[MODEL].bytes("bfloat16", backward=which == "backward") / device.bytes_per_second
    counted = (sum(result["cycles"].values()) + result["xla_cycles"]) / device.cycles_per_second
    assert counted / least < AIMS[which]


@pytest.mark.gpu
def test_the_gpu_kernels_hardly_spill():
    for result in compiled("h100", True, False):
        (facts,) = result["ptxas"].values()
        assert facts["spilled_bytes"] <= (128 if result["pass"] == "backward" else 0), result


SCHEDULE = """
= control target key end
     0   :  { %s1 = smov 0 /* Start region 1 */ }
   0x1 LB: > { %s9 = sadd.s32 1, %s2 /* iteration index, stage = 1 */ /* Start region 4 */ }
   0x2   : > { %8 = sbr.rel (!%p7) target = $region5 /* Start region 3 */ }
   0x3 LB: >> { %v1 = vld [vmem:[#allocation2]] /* Start region 2 */ }
   0x4   : >> { %p2 = scmp.ge.s32.totalorder %s3, 5 }
   0x5   : > { %v7 = vld [vmem:[#allocation4]] }
   0x6   : >> { %v2 = vmul.f32 %v1, %v1 }
   0x7   : > { %9 = sbr.rel (!%p2) target = $region2  ;;  %p1 = scmp.ge.s32.totalorder (%p2), %s9, 12 /* loop exit test */ }
   0x8   :  {}
   0x9   : >> { %v3 = vmul.f32 %v2, %v2 }
   0xa   :  {}
   0xb   : >> { %v4 = vmul.f32 %v3, %v3 /* End region 2 */ }
   0xc PF: > { %s4 = smov 1 /* Start/End empty region 5 */ }
   0xd   :  { %10 = sbr.rel (!%p1) target = $region4 /* End region 4 */ }
   0xe   :  {}
   0xf   :  {}
  0x10   :  {}
  0x11   :  {}
  0x12   :  { %10 = vsyncpa [#allocation3], 1 }
"""


def test_bundles_of_loops_count_as_often_as_they_run():
    inner = 9 * 5  # with the outer loop's bundles in between and the delay slots of the jump
    assert count_bundles(SCHEDULE) == 2 + (12 - 2) * (2 + inner + 6)


def test_a_loop_of_unknown_length_is_not_counted():
    with pytest.raises(UncountableError, match="bundles 3 to 7"):
        count_bundles(SCHEDULE.replace("%s3, 5", "%s3, %s8"))


def test_an_argument_that_a_kernel_does_not_take_is_told_with_its_reason(capsys):
    if reason := missing("v5e"):
        pytest.skip(reason)
    assert main(["v5e", "window_attention", "--shapes", "head_dim_24", "--dtypes", "float32"]) == 0
    assert "head_dim=24 is not one of" in capsys.readouterr().out
    assert "head_dim_24" in NASTY

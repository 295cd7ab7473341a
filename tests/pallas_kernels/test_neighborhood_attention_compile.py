"""The kernels compile for devices that are not here, copy no map, and take the cycles that were counted."""

import functools
import math

import pytest

from pallas_kernels.compile import TARGETS, compile_all, missing
from pallas_kernels.neighborhood_attention.shapes import MODELS

# A bias with folded images; head_dim 64 on one axis; three axes with dilation.
NASTIEST = ["does_not_divide_the_tile", "one_axis", "three_axes"]
MODEL = "nat_tiny_stage1"


@functools.cache
def compiled(target: str, model: bool):
    if reason := missing(target):
        pytest.skip(reason)
    if model:
        return compile_all(target, "neighborhood_attention", [MODEL], ["bfloat16"])
    main = target in ("v5e", "h100")
    return compile_all(
        target, "neighborhood_attention", NASTIEST if main else NASTIEST[:1], ["float32", "bfloat16"][not main :], count=False
    )


@pytest.mark.parametrize("target", [pytest.param(name, marks=getattr(pytest.mark, target.platform)) for name, target in TARGETS.items()])
def test_every_kind_of_argument_compiles(target):
    results = compiled(target, model=False)
    assert len(results) == (len(NASTIEST) * 2 * 2 if target in ("v5e", "h100") else 2)
    for result in results:
        assert "error" not in result, result
        assert any(f"neighborhood_attention_{result['pass']}" in kernel for kernel in result["kernels"]), result


@pytest.mark.parametrize("target", [pytest.param("v5e", marks=pytest.mark.tpu), pytest.param("h100", marks=pytest.mark.gpu)])
def test_a_model_s_map_is_never_copied(target):
    one_map = math.prod(MODELS[MODEL].size) * 2
    for result in compiled(target, model=True):
        assert result["temp_bytes"] < one_map / 4, result

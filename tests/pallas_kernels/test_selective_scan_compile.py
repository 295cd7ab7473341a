"""The scan's kernels compile for TPUs that are not here."""

import pytest

from pallas_kernels.compile import compile_all, missing


@pytest.mark.tpu
@pytest.mark.parametrize("shape", ["sixty_five_tokens", "sixty_five_reverse", "two_tiles"])
def test_every_kind_of_argument_compiles(shape):
    if reason := missing("v5e"):
        pytest.skip(reason)
    for result in compile_all("v5e", "selective_scan", [shape], ["bfloat16"], count=False):
        assert "error" not in result, result
        assert f"selective_scan_{result['pass']}" in result["kernels"], result  # the kernel is present in the program

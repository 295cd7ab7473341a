"""No recording is left out: each is compared by a test, or named here as unknown."""

import pytest


@pytest.mark.goldens("")
def test_a_test_compares_the_recording(golden_file, request):
    tests = [item for item in request.session.items if item is not request.node and hasattr(item, "callspec")]
    compared = {item.callspec.params.get("golden_file") for item in tests if item.originalname != request.node.originalname}
    assert golden_file in compared, f"no test knows what {golden_file.name} records"

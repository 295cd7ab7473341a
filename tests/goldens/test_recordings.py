"""No recording is left out: each is compared by a test, or listed here as unknown."""

import pytest


@pytest.mark.goldens("")
def test_a_test_compares_the_recording(golden_file, request):
    config = request.config
    if not config.getoption("goldens") and config.args != config.getini("testpaths"):
        pytest.skip("only a run of all tests, or one with --goldens, has the tests of all recordings")
    tests = [item for item in request.session.items if hasattr(item, "callspec") and item.originalname != request.node.originalname]
    compared = {item.callspec.params.get("golden_file") for item in tests}
    assert golden_file in compared, f"no test knows what {golden_file.name} records"

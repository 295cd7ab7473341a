"""The deployed reconstruction keeps the published size of the network."""

import pytest
from flax import nnx

from vitlab.analysis.counts import count_macs, count_params
from vitlab.models.registry import abstract_model

# arXiv:2311.05707: parameters in millions, GMACs.
PUBLISHED = {"tiny": (2.0, 0.3), "small": (6.4, 0.8), "medium": (12.8, 2.0), "base": (24.3, 4.2), "large": (35.3, 7.1)}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_fused_network_has_the_published_size_within_3_percent(variant):
    fused = nnx.eval_shape(lambda model: model.fuse(), abstract_model(f"fmvit_{variant}"))
    params, gmacs = PUBLISHED[variant]
    assert count_params(fused) / 1e6 == pytest.approx(params, rel=0.03)
    assert count_macs(fused) / 1e9 == pytest.approx(gmacs, rel=0.03)
    assert not [m for _, m in nnx.iter_modules(fused) if type(m).__name__ == "MultiGroupLinear" and m.branches]

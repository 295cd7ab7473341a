"""The deployed network keeps the published size."""

import pytest
from flax import nnx

from vitlab.analysis.counts import count_macs, count_params
from vitlab.models.registry import abstract_model


def test_the_fused_network_has_the_published_size():
    fused = nnx.eval_shape(lambda model: model.fuse(), abstract_model("overlock_xt"))
    assert round(count_params(fused) / 1e6) == 16  # the authors' README
    # The figure was counted on the authors' deployed code without neighborhood sums, 1 % of the
    # total.
    assert count_macs(fused) / 1e9 == pytest.approx(2.671, rel=0.02)
    assert not [m for _, m in nnx.iter_modules(fused) if type(m).__name__ == "BatchNorm"]

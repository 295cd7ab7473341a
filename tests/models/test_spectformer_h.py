"""Hierarchical SpectFormer with and without the head for labels of tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.conftest import apply, small
from vitlab.analysis.counts import count_params
from vitlab.models.registry import abstract_model


@pytest.mark.parametrize(("name", "millions"), [("small", 21.78), ("base", 32.54), ("large", 54.16)])
def test_without_token_labels_the_auxiliary_head_is_not_there(name, millions):
    model = abstract_model(f"spectformerh_{name}", token_labels=False)
    assert model.aux_head is None and round(count_params(model) / 1e6, 2) == millions  # counts of the authors' code


def test_without_token_labels_the_logits_are_those_of_the_class_token():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)
    full, plain = (small("spectformerh_small", image_size=32, token_labels=labels) for labels in (True, False))
    full.aux_head.kernel[...] = jnp.zeros_like(full.aux_head.kernel[...])
    np.testing.assert_array_equal(apply(full, x), apply(plain, x))

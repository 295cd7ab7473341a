"""Scores of restoration on the device against those of whole pictures on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_losses import setting
from vitlab.metrics.restoration import image_quality
from vitlab.tasks.restoration import evaluation, finish

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("options", [{}, {"colour": "luma", "border": 2}], ids=str)
def test_psnr_and_ssim_are_the_means_over_the_pictures(options):
    target = np.clip(np.cumsum(RNG.normal(0, 20, (3, 20, 26, 3)), 1) + 128, 0, 255).astype(np.uint8)
    noisy, restored = (np.clip(target + RNG.normal(0, sigma, target.shape), 0, 255).round().astype(np.float32) for sigma in (25, 5))
    restored[2] = target[2]
    measure = jax.jit(evaluation(setting("restoration", **options)).measure)
    rows = measure(jnp.asarray(restored), {"image": jnp.asarray(noisy), "target": jnp.asarray(target)})
    found = finish(jax.tree.map(np.asarray, rows), 3)
    border, luma = options.get("border", 0), "colour" in options
    for prefix, pictures in (("", restored), ("degraded_", noisy)):
        expected = [image_quality(a.astype(np.uint8), b, border=border, luma=luma) for a, b in zip(pictures, target, strict=True)]
        psnr = np.mean([100 if np.isinf(one["psnr"]) else one["psnr"] for one in expected])
        assert found[f"{prefix}psnr"] == pytest.approx(psnr, rel=1e-5)  # float32
        assert found[f"{prefix}ssim"] == pytest.approx(np.mean([one["ssim"] for one in expected]), rel=1e-4)  # float32 variances
    assert set(found) == {"psnr", "ssim", "degraded_psnr", "degraded_ssim"}


def test_a_picture_smaller_than_the_window_has_no_ssim():
    shapes = jax.ShapeDtypeStruct((2, 10, 30, 3), jnp.float32)
    rows = jax.eval_shape(evaluation(setting("restoration")).measure, shapes, {"image": shapes, "target": shapes})
    assert set(rows) == {"error", "degraded_error"}

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.config import MixConfig
from vitlab.device.mix import cut_maps, mix
from vitlab.losses import soft_targets

B, SIDE = 8, 16
# Each image has one value, so that a mixture reveals its share.
IMAGES = jnp.broadcast_to((jnp.arange(B, dtype=jnp.uint8) * 30)[:, None, None, None], (B, SIDE, SIDE, 3))
TARGETS = soft_targets(jnp.arange(B), B)


@functools.cache
def compiled(config):
    return jax.jit(jax.vmap(lambda key: mix(IMAGES, TARGETS, key, config)))


def runs(count, **fields):
    """Returns images and targets of several draws."""
    images, targets = compiled(MixConfig(**fields))(jax.random.split(jax.random.key(0), count))
    return np.asarray(images), np.asarray(targets)


def share(targets):
    """Returns the share that each image keeps of itself."""
    return targets[..., np.arange(B), np.arange(B)]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("fields", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}], ids=str)
def test_pixels_and_targets_have_the_same_share_of_the_reverse(mode, fields):
    for images, targets in zip(*runs(4, mode=mode, **fields), strict=True):
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        expected = share(targets) * np.arange(B) * 30 + (1 - share(targets)) * np.arange(B)[::-1] * 30
        np.testing.assert_allclose(images.astype(np.float32).mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-3)


def test_who_draws_a_share_of_its_own():
    kept = {mode: share(runs(4, mode=mode, mixup_alpha=0.8)[1])[0] for mode in ("batch", "pair", "elem")}
    assert len(set(kept["batch"])) == 1 and len(set(kept["pair"])) == B // 2 and len(set(kept["elem"])) == B
    np.testing.assert_array_equal(kept["pair"], kept["pair"][::-1])


def test_cutmix_puts_one_box_of_whole_pixels_and_keeps_uint8():
    images, targets = (x[3] for x in runs(4, cutmix_alpha=1.0, mode="elem"))
    assert images.dtype == np.uint8
    for i in range(B):
        changed = images[i, :, :, 0] != IMAGES[i, 0, 0, 0]
        rows, cols = changed.any(1), changed.any(0)
        np.testing.assert_array_equal(changed, rows[:, None] & cols[None])  # the changed pixels are a rectangle
        np.testing.assert_allclose(1 - changed.mean(), share(targets)[i], rtol=1e-5)
        if changed.any():
            assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum() and np.ptp(np.flatnonzero(cols)) + 1 == cols.sum()


def test_shares_have_the_beta_distribution_and_prob_its_frequency():
    kept = share(runs(250, mixup_alpha=0.4, mode="elem", prob=0.75)[1]).ravel()
    mixed = kept[kept < 1]
    assert abs(len(mixed) / len(kept) - 0.75) < 0.04  # 2000 draws: 4 standard deviations
    assert abs(mixed.mean() - 0.5) < 0.04 and abs(mixed.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.02  # mean and variance of Beta(a, a)


def test_switching_chooses_cutmix_as_often_as_asked():
    images, _ = runs(300, mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=0.3)
    whole = np.isin(images, np.arange(B) * 30).all((1, 2, 3, 4))
    assert abs(np.mean(whole) - 0.3) < 0.11  # 300 draws: 4 standard deviations


def test_nothing_is_mixed_by_default():
    images, targets = (x[0] for x in runs(1))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(targets, TARGETS)


def test_maps_get_the_box_that_their_image_gets():
    maps = IMAGES[..., 0].astype(jnp.float32)
    config = MixConfig(cutmix_alpha=1.0, mode="elem")
    mixed = jax.jit(lambda key: cut_maps({"image": IMAGES, "map": maps}, key, config))(jax.random.key(1))
    np.testing.assert_array_equal(mixed["map"], mixed["image"][..., 0])
    assert not np.array_equal(mixed["map"], maps)

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.device.erase import AREA, erase
from vitlab.models.registry import Preprocessing

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), image_size=(24, 32))
IMAGES = jnp.full((600, 24, 32, 3), 7, jnp.uint8)
OUT = np.asarray(jax.jit(lambda key: erase(IMAGES, key, 0.25, PREPROCESSING))(jax.random.key(0)))


def test_a_quarter_of_the_images_gets_one_rectangle_of_the_right_area():
    changed = (OUT != 7).any(-1)
    erased = changed.any((1, 2))
    assert abs(erased.mean() - 0.25) < 0.07  # 600 draws: 4 standard deviations
    for image in changed[erased]:
        rows, cols = image.any(1), image.any(0)
        np.testing.assert_array_equal(image, rows[:, None] & cols[None])
        assert rows.sum() == np.ptp(np.flatnonzero(rows)) + 1 < 24 and cols.sum() == np.ptp(np.flatnonzero(cols)) + 1 < 32
        assert AREA[0] * 0.6 < image.mean() < AREA[1] * 1.15  # sides are whole pixels


def test_the_model_sees_standard_normal_noise():
    changed = (OUT != 7).any(-1)
    noise = (OUT[changed] / 255 - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    assert np.abs(noise.mean(0)).max() < 0.03 and np.abs(noise.std(0) - 1).max() < 0.03


def test_without_erasing_images_stay_uint8():
    assert erase(IMAGES, jax.random.key(0), 0.0, PREPROCESSING) is IMAGES

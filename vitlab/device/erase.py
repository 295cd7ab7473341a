"""Random erasing (Zhong et al., arXiv:1708.04896, algorithm 1) on the device, as timm's mode
"pixel".
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from vitlab.models.registry import Preprocessing

AREA = (0.02, 1 / 3)  # of a rectangle over the image's
RATIO = (0.3, 1 / 0.3)  # of its height over its width, log-uniform
ATTEMPTS = 10  # to place it inside the image


def erase(images: Shaped[Array, "b h w c"], rng: Array, prob: float, preprocessing: Preprocessing) -> Shaped[Array, "b h w c"]:
    """Puts noise into a random rectangle of each image with probability `prob`.

    The noise is normal with the mean and the deviation of normalisation, so that the model sees a
    standard normal.

    Returns:
      Pixels, float32 and not bounded where `prob` is above 0; the images themselves else.
    """
    if not prob:
        return images
    b, h, w, _ = images.shape
    keys = jax.random.split(rng, 6)
    draws = (b, ATTEMPTS)
    area = jax.random.uniform(keys[0], draws, minval=AREA[0], maxval=AREA[1]) * (h * w)
    ratio = jnp.exp(jax.random.uniform(keys[1], draws, minval=math.log(RATIO[0]), maxval=math.log(RATIO[1])))
    heights, widths = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (heights < h) & (widths < w)
    first = jnp.argmax(fits, 1)[:, None]
    chosen = fits.any(1) & (jax.random.uniform(keys[2], (b,)) < prob)
    inside = []
    for sides, side, key in ((heights, h, keys[3]), (widths, w, keys[4])):
        length = jnp.take_along_axis(sides, first, 1)
        start = jnp.floor(jax.random.uniform(key, (b, 1)) * (side - length + 1))
        at = jnp.arange(side)[None]
        inside.append((at >= start) & (at < start + length))
    rectangle = (inside[0][:, :, None] & inside[1][:, None, :] & chosen[:, None, None])[..., None]
    mean, std = (preprocessing.max_value * jnp.asarray(x, jnp.float32)[None, None, None] for x in (preprocessing.mean, preprocessing.std))
    noise = mean + std * jax.random.normal(keys[5], images.shape)
    return jnp.where(rectangle, noise, images.astype(jnp.float32))

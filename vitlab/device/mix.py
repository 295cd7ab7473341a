"""Mixup and cutmix of a batch with its reverse, on the device; distributions and box as in timm's
`Mixup`.

mixup: Zhang et al., arXiv:1710.09412. cutmix: Yun et al., arXiv:1905.04899, eq. 1 to 3; the share
of the label is that of the pixels that are really replaced, since a box is cut off at the border.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitlab.config import MixConfig

Images = Shaped[Array, "b h w c"]


class _Draw(NamedTuple):
    """Random numbers drawn for each image of a batch."""

    kept: Float[Array, " b"]  # share that an image keeps of itself
    cuts: Bool[Array, " b"]  # whether it is mixed by cutmix
    inside: Bool[Array, "b h w"]  # pixels of cutmix's box


def mix(images: Images, targets: Float[Array, "b classes"], rng: Array, config: MixConfig) -> tuple[Images, Float[Array, "b classes"]]:
    """Mixes image i with image b - 1 - i, and their targets by the same share.

    Args:
      images: Pixels; their dtype remains under cutmix alone.
      targets: Of the images.
      rng: Key.
      config: Which, how often, and whether the share is one a batch, one a pair, or one an image.

    Returns:
      Images (float32 if mixup is on) and targets.
    """
    if not (config.mixup_alpha or config.cutmix_alpha):
        return images, targets
    drawn = _draw(rng, config, images.shape)
    out = _cut(images, drawn)
    if config.mixup_alpha:
        share = jnp.where(drawn.cuts, 1.0, drawn.kept)[:, None, None, None]
        out = share * out.astype(jnp.float32) + (1 - share) * images[::-1].astype(jnp.float32)
    return out, drawn.kept[:, None] * targets + (1 - drawn.kept[:, None]) * targets[::-1]


def cut_maps(batch: Mapping[str, Array], rng: Array, config: MixConfig) -> dict[str, Array]:
    """Cutmix of images with their maps, each [b, h, w] or [b, h, w, c]: all get the same box of the
    other image, so that each pixel keeps its own annotation.
    """
    if not config.cutmix_alpha:
        return dict(batch)
    drawn = _draw(rng, config, batch["image"].shape)
    return {name: _cut(values, drawn) for name, values in batch.items()}


def _draw(rng: Array, config: MixConfig, shape: tuple[int, ...]) -> _Draw:
    b, h, w = shape[:3]
    keys = jax.random.split(rng, 4)
    draws = {"batch": 1, "pair": -(-b // 2), "elem": b}[config.mode]
    cuts = jax.random.uniform(keys[0], (draws,)) < _share_of_cutmix(config)
    alpha = jnp.where(cuts, config.cutmix_alpha, config.mixup_alpha)
    kept = jax.random.beta(keys[1], alpha, alpha)  # share that an image keeps of itself
    kept = jnp.where(jax.random.uniform(keys[2], (draws,)) < config.prob, kept, 1.0)
    inside, replaced = _boxes(keys[3], kept, (h, w))
    kept = jnp.where(cuts, 1 - replaced, kept)
    return _Draw(*(_spread(x, b) for x in (kept, cuts, inside)))


def _cut(values: Shaped[Array, "b h w *c"], drawn: _Draw) -> Shaped[Array, "b h w *c"]:
    """The values with cutmix's box of the other image."""
    box = drawn.inside & drawn.cuts[:, None, None]
    return jnp.where(box.reshape(*box.shape, *(1,) * (values.ndim - 3)), values[::-1], values)


def _share_of_cutmix(config: MixConfig) -> float:
    if not config.mixup_alpha:
        return 1.0
    return config.switch_prob if config.cutmix_alpha else 0.0


def _boxes(key: Array, kept: Float[Array, " n"], size: tuple[int, int]) -> tuple[Bool[Array, "n h w"], Float[Array, " n"]]:
    """Pixels of a box around a uniform centre, whose sides are sqrt(1 - kept) of the image's before
    the border cuts it; and its share.
    """
    inside = []
    for side, k in zip(size, jax.random.split(key), strict=True):
        centre = jax.random.randint(k, kept.shape, 0, side)
        half = (side * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
        low, high = (jnp.clip(x, 0, side) for x in (centre - half, centre + half))
        at: Int[Array, "1 side"] = jnp.arange(side)[None]
        inside.append((at >= low[:, None]) & (at < high[:, None]))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    return box, box.mean((1, 2))


def _spread(x: Array, b: int) -> Array:
    """One value a batch, a pair (i with b - 1 - i) or an image as one an image."""
    if len(x) == b:
        return x
    return jnp.broadcast_to(x, (b, *x.shape[1:])) if len(x) == 1 else jnp.concatenate((x, x[: b // 2][::-1]))

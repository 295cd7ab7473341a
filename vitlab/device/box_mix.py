"""Mosaic and copy-paste of a batch's images with their boxes, on the device.

Boxes are rows as in `vitlab.data.fields.BOX_COLUMNS`, -1 where there is none. A result has more
rows than the batch before, so that no box is lost. What remains of a box under a border follows the
rule of `vitlab.data.fields.Boxes.warp`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitlab.data.fields import LEAST_SIDE, VISIBLE

Images = Shaped[Array, "b h w c"]
_QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (below, right) of the point where four images meet
_PICKED = 0.5  # probability that an object is copied
_WHOLE = 1 - VISIBLE  # visible share from which on an object that was not picked counts as an object


def mosaic(images: Images, boxes: Float[Array, "b n 7"], rng: Array, prob: float) -> tuple[Images, Float[Array, "b m 7"]]:
    """Puts parts of four images around a point with probability `prob` (Bochkovskiy et al., YOLOv4,
    arXiv:2004.10934, section 3.3).

    The images keep their scale: image i gives its lower right part to the upper left of the point,
    images i - 1 to i - 3 give theirs. The point lies in the middle half of each side.

    Returns:
      The images, and 4 n rows of boxes; both as they are if `prob` is 0.
    """
    if not prob:
        return images, boxes
    b, h, w, _ = images.shape
    keys = jax.random.split(rng, 3)
    chosen = jax.random.uniform(keys[0], (b,)) < prob
    top, left = (jax.random.randint(key, (b,), side // 4, side - side // 4 + 1) for key, side in zip(keys[1:], (h, w), strict=True))
    below, right = jnp.arange(h)[None] >= top[:, None], jnp.arange(w)[None] >= left[:, None]
    # A roll to the point puts each part of an image where it belongs.
    roll = jax.vmap(lambda image, y, x: jnp.roll(image, (y, x), (0, 1)))
    out, rows = images, []
    for index, (low, far) in enumerate(_QUADRANTS):
        inside = (below == bool(low))[:, :, None] & (right == bool(far))[:, None, :] & chosen[:, None, None]
        out = jnp.where(inside[..., None], roll(jnp.roll(images, index, 0), top, left), out)
        offset = top - h * (1 - low), left - w * (1 - far)
        rows.append(_moved(jnp.roll(boxes, index, 0), offset, _quadrant(top, left, (h, w), low, far)))
        rows[-1] = jnp.where(chosen[:, None, None], rows[-1], boxes if index == 0 else -1.0)
    return out, jnp.concatenate(rows, 1)


def _quadrant(top: Int[Array, " b"], left: Int[Array, " b"], size: tuple[int, int], low: int, far: int) -> Int[Array, "4 b"]:
    """Left, top, right, bottom."""
    none, height, width = jnp.zeros_like(top), jnp.full_like(top, size[0]), jnp.full_like(top, size[1])
    return jnp.stack([left if far else none, top if low else none, width if far else left, height if low else top])


def _moved(boxes: Float[Array, "b n 7"], offset: tuple[Array, Array], bounds: Int[Array, "4 b"]) -> Float[Array, "b n 7"]:
    """The boxes moved by (down, right) and cut off at the bounds."""
    y, x = offset
    corners = boxes[..., :4] + jnp.stack([x, y, x, y], -1)[:, None]
    least, most = (bounds[i : i + 2].T[:, None] for i in (0, 2))
    inside = jnp.concatenate([corners[..., :2].clip(least, most), corners[..., 2:].clip(least, most)], -1)
    sides, whole = inside[..., 2:] - inside[..., :2], corners[..., 2:] - corners[..., :2]
    share = sides.prod(-1) / jnp.maximum(whole.prod(-1), 1e-9)
    kept = (boxes[..., 4] >= 0) & (share >= VISIBLE) & (sides >= LEAST_SIDE).all(-1)
    moved = jnp.concatenate([inside, boxes[..., 4:6], (boxes[..., 6] * share)[..., None]], -1)
    return jnp.where(kept[..., None], moved, -1.0)


def copy_paste(images: Images, boxes: Float[Array, "b n 7"], rng: Array, prob: float) -> tuple[Images, Float[Array, "b m 7"]]:
    """Copies objects of image i - 1 to their places in image i with probability `prob`: copy-paste
    (Ghiasi et al., arXiv:2012.07177) of boxes, without the blending that masks allow.

    Half of the objects are copied, with all that lies in their boxes. An object that is covered
    counts as long as a tenth of it is visible. What is seen of an object that was not picked
    becomes a crowd, in which nothing counts as wrong.

    Returns:
      The images, and 2 n rows of boxes; both as they are if `prob` is 0.
    """
    if not prob:
        return images, boxes
    b, h, w, _ = images.shape
    keys = jax.random.split(rng, 2)
    other = jnp.roll(boxes, 1, 0)
    picked = (jax.random.uniform(keys[0], (b, 1)) < prob) & (jax.random.uniform(keys[1], other.shape[:2]) < _PICKED)
    picked &= (other[..., 4] >= 0) & (other[..., 5] != 1)
    rows, columns = _pixels(other, (h, w))
    pasted = jnp.einsum("bnh,bnw->bhw", (rows & picked[..., None]).astype(jnp.float32), columns.astype(jnp.float32)) > 0
    hidden, seen = _covered(boxes, pasted), _covered(other, pasted)
    kept = jnp.where((hidden <= _WHOLE)[..., None], boxes, -1.0)
    crowd = jnp.where(picked | (seen >= _WHOLE), other[..., 5], 1.0)
    added = jnp.where((seen >= VISIBLE)[..., None], other.at[..., 5].set(crowd), -1.0)
    return jnp.where(pasted[..., None], jnp.roll(images, 1, 0), images), jnp.concatenate([kept, added], 1)


def _pixels(boxes: Float[Array, "b n 7"], size: tuple[int, int]) -> tuple[Bool[Array, "b n h"], Bool[Array, "b n w"]]:
    """Rows and columns of pixels whose centres lie in each box."""
    y, x = (jnp.arange(side)[None, None] + 0.5 for side in size)
    left, top, right, bottom = (boxes[..., i, None] for i in range(4))
    return (y > top) & (y < bottom), (x > left) & (x < right)


def _covered(boxes: Float[Array, "b n 7"], mask: Bool[Array, "b h w"]) -> Float[Array, "b n"]:
    """Share of each box's pixels that are in the mask; 0 of none."""
    _, h, w = mask.shape
    rows, columns = (x.astype(jnp.float32) for x in _pixels(boxes, (h, w)))
    both = jnp.einsum("bnh,bhw,bnw->bn", rows, mask.astype(jnp.float32), columns)
    return both / jnp.maximum(rows.sum(-1) * columns.sum(-1), 1)

"""Mosaic and copy-paste move boxes with their pixels: each object has a colour of its own, which is
also its class.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.device.box_mix import copy_paste, mosaic

B, H, W = 5, 24, 32
BOXES = np.full((B, 3, 7), -1, np.float32)
IMAGES = np.zeros((B, H, W, 1), np.uint8)
for _image in range(B):
    for _row, (_x, _y, _width, _height) in enumerate(((2, 2, 10, 7), (18, 12, 12, 10))):
        _label = 10 * _image + _row + 1
        BOXES[_image, _row] = (_x, _y, _x + _width, _y + _height, _label, 0, _width * _height)
        IMAGES[_image, _y : _y + _height, _x : _x + _width] = _label
AREAS = {int(row[4]): row[6] for row in BOXES.reshape(-1, 7) if row[4] >= 0}


def mixed(mix, prob=1.0, boxes=BOXES, images=IMAGES):
    return map(np.asarray, jax.jit(lambda key: mix(jnp.asarray(images), jnp.asarray(boxes), key, prob))(jax.random.key(3)))


def test_mosaic_moves_boxes_with_their_pixels_and_loses_none():
    images, boxes = mixed(mosaic)
    assert boxes.shape == (B, 12, 7) and images.dtype == np.uint8
    found = 0
    for image, rows in zip(images[..., 0], boxes, strict=True):
        rows = rows[rows[:, 4] >= 0]
        for left, top, right, bottom, label, _, area in rows.tolist():
            assert (image[int(top) : int(bottom), int(left) : int(right)] == label).all()
            assert area == pytest.approx((right - left) * (bottom - top)) == (image == label).sum()
        named, counts = np.unique(image[image > 0], return_counts=True)
        assert {label for label, count in zip(named.tolist(), counts.tolist(), strict=True) if count >= 0.1 * AREAS[label]} == set(
            rows[:, 4]
        )
        found += len({label // 10 for label in rows[:, 4].astype(int)} - {0}) > 1
    assert found  # images really have objects of several others


def test_copy_paste_adds_objects_and_drops_what_they_cover():
    shifted = BOXES.copy()
    shifted[1, 0, [0, 2]] += 2  # the box of image 1 moves, so that image 2 keeps a part of its own first object beside the copy
    images = IMAGES.copy()
    images[1, 2:9, 2:14] = 0
    images[1, 2:9, 4:14] = 11
    images, boxes = mixed(copy_paste, boxes=shifted, images=images)
    assert boxes.shape == (B, 6, 7)
    added = 0
    for index, (image, rows) in enumerate(zip(images[..., 0], boxes, strict=True)):
        shown = {label for label in np.unique(image[image > 0]).tolist() if (image == label).sum() >= 0.1 * AREAS[label]}
        assert {int(row[4]) for row in rows if row[4] >= 0} == shown
        added += sum(label // 10 == (index - 1) % B for label in shown)
    assert 0 < added < 2 * B


def test_a_part_of_an_object_that_was_not_picked_is_a_crowd():
    boxes = np.full((2, 2, 7), -1, np.float32)
    boxes[0, 0], boxes[0, 1] = (0, 0, 10, 10, 1, 0, 100), (5, 0, 15, 10, 2, 0, 100)
    images = np.zeros((2, 12, 16, 1), np.uint8)
    seen = set()
    for seed in range(12):
        _, rows = jax.jit(copy_paste, static_argnums=3)(jnp.asarray(images), jnp.asarray(boxes), jax.random.key(seed), 1.0)
        seen.add(tuple((int(row[4]), int(row[5])) for row in np.asarray(rows)[1] if row[4] >= 0))
    assert seen == {(), ((1, 0), (2, 1)), ((1, 1), (2, 0)), ((1, 0), (2, 0))}


@pytest.mark.parametrize("mix", [mosaic, copy_paste])
def test_images_that_are_not_chosen_stay_as_they_are(mix):
    images, boxes = mixed(mix, prob=1e-9)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(boxes[:, :3], BOXES)
    assert (boxes[:, 3:] == -1).all()

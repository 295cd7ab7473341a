"""Crops, flips and resizes against literal ones."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import smooth
from vitlab.config import AugmentConfig
from vitlab.data import augment

RNG = np.random.default_rng
# Evaluation resizes with Pillow; only the subpixel position of the crop box differs from
# resize-then-crop.
PILLOW_MEAN = 1.0
# Training resizes with OpenCV. On smooth images with noise of 8 OpenCV deviates from Pillow by 0.5
# to 0.9, without antialiasing by up to 3.
TRAINING_MEAN = 1.0


def test_pad_crop_is_pad_then_slice():
    images = RNG(0).integers(0, 256, (3, 6, 5, 2), dtype=np.uint8)
    corners = np.array([[0, 4], [2, 2], [4, 1]])
    out = augment.pad_crop(images, corners, 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, whole, (top, left) in zip(out, padded, corners, strict=True):
        np.testing.assert_array_equal(image, whole[top : top + 6, left : left + 5])
    np.testing.assert_array_equal(out[1], images[1])


def test_corners_are_uniform_over_both_ends():
    corners = augment.draw_corners(RNG(0), 4000, 2)
    assert set(np.unique(corners)) == set(range(5))
    assert np.bincount(corners.ravel()).min() > 1400


def test_flip_reverses_the_columns_of_the_chosen():
    images = RNG(0).integers(0, 256, (2, 3, 4, 1), dtype=np.uint8)
    out = augment.flip(images, np.array([True, False]))
    np.testing.assert_array_equal(out[0], images[0, :, ::-1])
    np.testing.assert_array_equal(out[1], images[1])
    assert abs(augment.draw_flips(RNG(1), 10_000).mean() - 0.5) < 0.02


def test_random_boxes_keep_to_the_image_its_areas_and_ratios():
    boxes = [augment.random_resized_box((60, 80), RNG(seed), (0.2, 0.9), (3 / 4, 4 / 3)) for seed in range(500)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 60 - height and 0 <= left <= 80 - width
        assert 0.19 < height * width / 4800 < 0.91  # one pixel of rounding on each bound
        assert 0.7 < width / height < 1.4
    assert len(set(boxes)) > 490


def test_an_image_too_thin_for_any_box_gives_the_largest_central_one():
    top, left, height, width = augment.random_resized_box((10, 1000), RNG(0), (0.5, 1.0), (3 / 4, 4 / 3))
    assert (height, width) == (10, 13) and top == 0 and left == (1000 - 13) // 2


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (500, 333)])
@pytest.mark.parametrize("crop", ["random_resized", "random", "pad", "center", "stretch", "letterbox", "scale_jitter"])
def test_an_image_of_any_size_fits(size, crop):
    image = smooth(RNG(0), *size)
    move = augment.fit(size, RNG(0), AugmentConfig(crop=crop), (16, 24), "bicubic")
    assert move.pixels(image).shape == (16, 24, 3)


@pytest.mark.parametrize(("source", "fraction"), [((50, 70), 0.875), ((70, 50), 0.9), ((20, 20), 1.0), ((300, 200), 0.95)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_pillows_resize_then_centre_crop(source, fraction, interpolation):
    image = smooth(RNG(2), *source)
    got = augment.resize_and_center_crop(image, (32, 32), interpolation, fraction).astype(int)
    short = int(32 / fraction)
    scale = short / min(source)
    height, width = (short if side == min(source) else int(side * scale) for side in source)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    whole = np.asarray(Image.fromarray(image).resize((width, height), resample)).astype(int)
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    assert np.abs(got - whole[top : top + 32, left : left + 32]).mean() < PILLOW_MEAN


def test_resizing_to_a_constant_keeps_it():
    image = np.full((40, 30, 3), 77, np.uint8)
    for size in ((20, 20), (80, 90), (20, 60)):
        assert set(augment.resize(image, size, "bicubic").ravel()) == {77}


@pytest.mark.parametrize("source", [(40, 56), (60, 48), (63, 50), (30, 60), (100, 90), (20, 24)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_resizes_as_pillow_does(source, interpolation):
    image = (smooth(RNG(3), *source) + RNG(4).normal(0, 8, (*source, 3))).clip(0, 255).astype(np.uint8)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    expected = np.asarray(Image.fromarray(image).resize((32, 32), resample)).astype(int)
    got = augment.resize(image, (32, 32), interpolation).astype(int)
    assert np.abs(got - expected).mean() < TRAINING_MEAN
    for channel in range(3):
        np.testing.assert_array_equal(augment.resize(image[..., channel : channel + 1], (32, 32), interpolation)[..., 0], got[..., channel])


@pytest.mark.parametrize("scale", [1.6, 1.8, 2.5])
def test_stripes_too_fine_for_the_result_do_not_become_coarse_ones(scale):
    side = round(32 * scale)
    image = np.zeros((side, side, 3), np.uint8)
    image[::2] = 255
    assert augment.resize(image, (32, 32), "bicubic").std() < 0.36 * image.std()  # the ratio is 0.69 without antialiasing


@pytest.mark.parametrize("channels", [1, 3])
def test_flipped_rows_are_those_of_numpys_view(channels):
    image = RNG(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(augment.flip_rows(image), image[:, ::-1])
    images = RNG(1).integers(0, 256, (4, 5, 7, channels), dtype=np.uint8)
    for flipped in (np.zeros(4, bool), np.ones(4, bool), np.array([False, True, True, False])):
        expected = np.stack([image[:, ::-1] if turn else image for image, turn in zip(images, flipped, strict=True)])
        np.testing.assert_array_equal(augment.flip(images, flipped), expected)

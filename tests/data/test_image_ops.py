"""Operators against Pillow's."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.data.conftest import smooth
from vitlab.data import image_ops as ops

RNG = np.random.default_rng(0)
PHOTO = np.clip(smooth(RNG, 37, 45) + RNG.integers(-20, 21, (37, 45, 3)), 0, 255).astype(np.uint8)
GREY = PHOTO[..., :1].copy()
DULL = (PHOTO // 3 + 60).astype(np.uint8)


def pillow(fn, image):
    whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(fn(whole)).reshape(image.shape)


EXACT = {
    "auto_contrast": (ops.auto_contrast, ImageOps.autocontrast),
    "equalize": (ops.equalize, ImageOps.equalize),
    "invert": (ops.invert, ImageOps.invert),
    "solarize": (lambda x: ops.solarize(x, 100), lambda x: ImageOps.solarize(x, 100)),
    "posterize": (lambda x: ops.posterize(x, 3), lambda x: ImageOps.posterize(x, 3)),
    **{
        f"{name}_{factor}": (lambda x, f=ours, k=factor: f(x, k), lambda x, e=theirs, k=factor: e(x).enhance(k))
        for name, ours, theirs in (
            ("brightness", ops.brightness, ImageEnhance.Brightness),
            ("contrast", ops.contrast, ImageEnhance.Contrast),
            ("color", ops.color, ImageEnhance.Color),
            ("sharpness", ops.sharpness, ImageEnhance.Sharpness),
        )
        for factor in (0.1, 0.65, 1.0, 1.37, 1.9)
    },
}


@pytest.mark.parametrize("image", [PHOTO, GREY, DULL, np.zeros((4, 4, 3), np.uint8)], ids=["photo", "grey", "dull", "black"])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_values_are_pillow_s(name, image):
    ours, theirs = EXACT[name]
    off = np.abs(ours(image).astype(int) - pillow(theirs, image).astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 0.005  # a float32 may fall on the other side of a whole number


MATRICES = {
    "shear_x": (1, 0.27, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, -0.3, 1, 0),
    "translate": (1, 0, 7.4, 0, 1, -3.6),
}
# Pillow fills whole pixels at the border where OpenCV blends, hence the mean. Inside, Pillow
# truncates where OpenCV rounds (0.5 on average), weights have 5 bits, and the cubic kernels differ.
INSIDE = {"bilinear": 0.75, "bicubic": 1.5}


def close(ours, theirs, interpolation, inside):
    off = np.abs(ours.astype(int) - theirs.astype(int))
    assert off[inside].mean() < INSIDE[interpolation]
    assert off.mean() < 3


@pytest.mark.parametrize("interpolation", sorted(INSIDE))
@pytest.mark.parametrize("name", sorted(MATRICES))
def test_affine_maps_are_pillow_s(name, interpolation):
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    fill = (124, 116, 104)
    theirs = pillow(lambda x: x.transform(x.size, Image.Transform.AFFINE, MATRICES[name], resample=method, fillcolor=fill), PHOTO)
    ours = ops.affine(PHOTO, MATRICES[name], interpolation)
    close(ours, theirs, interpolation, np.s_[12:-12, 14:-14])


@pytest.mark.parametrize("interpolation", sorted(INSIDE))
@pytest.mark.parametrize("degrees", [-30.0, 12.5, 90.0])
def test_rotation_is_pillow_s(degrees, interpolation):
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    theirs = pillow(lambda x: x.rotate(degrees, resample=method, fillcolor=(124, 116, 104)), PHOTO)
    close(ops.rotate(PHOTO, degrees, interpolation), theirs, interpolation, np.s_[14:-14, 14:-14])


def test_grey_is_pillow_s_and_solarize_add_adds_below_the_middle():
    np.testing.assert_array_equal(ops.grey(PHOTO)[..., 0], np.asarray(Image.fromarray(PHOTO).convert("L")))
    out = ops.solarize_add(PHOTO, 50)
    np.testing.assert_array_equal(out, np.where(PHOTO < 128, np.minimum(PHOTO.astype(int) + 50, 255), PHOTO))

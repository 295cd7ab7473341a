"""Preparation of images by a checkpoint's own recipe."""

import numpy as np
import pytest
from PIL import Image

from vitlab.config import AugmentConfig, Experiment, ModelConfig
from vitlab.functional import functional
from vitlab.models.registry import Preprocessing, abstract_model
from vitlab.runs.trained import Trained, eval_fit, image_model

SQUASHED = Preprocessing(resize="squash", interpolation="bilinear")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("siglip_base_patch16", ("stretch", "bicubic", (0.5, 0.5, 0.5))),
        ("dinov3_small_patch16", ("stretch", "bilinear", (0.485, 0.456, 0.406))),
        ("clip_base_patch16", ("crop", "bicubic", (0.48145466, 0.4578275, 0.40821073))),
        ("dinov2_small_patch14", ("crop", "bicubic", (0.485, 0.456, 0.406))),
    ],
)
def test_variants_are_evaluated_as_their_authors_do(name, expected):
    recipe = abstract_model(name, depth=1).preprocessing
    fit, fraction = eval_fit(Experiment(), recipe)
    assert (fit, recipe.interpolation, recipe.mean) == expected
    assert fraction == {"dinov2_small_patch14": 0.875, "clip_base_patch16": 1.0}.get(name, recipe.crop_fraction)


def test_training_on_whole_images_evaluates_whole_images():
    assert eval_fit(Experiment(augment=AugmentConfig(crop="center")), SQUASHED) == ("crop", 1.0)


def test_a_squashed_image_is_all_of_the_picture():
    experiment = Experiment(model=ModelConfig(name="siglip_base_patch16", image_size=32, fields={"depth": 1, "dim": 16, "num_heads": 2}))
    fn, weights = functional(image_model("siglip_base_patch16", experiment, "x.safetensors"))
    trained = Trained(model=fn, weights=weights, experiment=experiment, channels=3, class_names=(), origin={})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(trained.prepare(pixels), np.asarray(expected))

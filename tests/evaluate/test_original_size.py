"""Windows that slide over a picture, and several views of it, give what mmsegmentation's give."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_commands import tiny
from vitlab.config import ConfigError
from vitlab.evaluate import __main__ as evaluate
from vitlab.evaluate.original_size import _corners, picture_scores, slide
from vitlab.layers.resize import resize_bilinear
from vitlab.train.loop import train


@pytest.mark.goldens("metrics_slide")
def test_sliding_windows_give_the_authors_logits(golden_file):
    recorded = np.load(golden_file)
    meta = json.loads(str(recorded["meta"]))
    image = recorded["x"][0].transpose(1, 2, 0)

    def logits(windows):
        centred = windows - windows.mean((1, 2), keepdims=True)
        rows = np.linspace(0, 1, windows.shape[1], dtype=np.float32)[None, :, None, None]
        return centred @ recorded["w"].T + rows

    found = slide(logits, image, window=tuple(meta["crop"]), stride=tuple(meta["stride"]))
    np.testing.assert_allclose(found, recorded["out"][0].transpose(1, 2, 0), atol=1e-5)  # float32 sums of a few windows


def brightness(windows):
    x = windows.astype(np.float32).sum(-1, keepdims=True)
    return np.concatenate([x / 100, 3 - x / 200], -1)


def test_windows_cover_the_picture_and_stay_inside():
    assert list(_corners((10, 5), (4, 4), (3, 3))) == [(0, 0), (0, 1), (3, 0), (3, 1), (6, 0), (6, 1)]
    assert list(_corners((4, 4), (4, 4), (3, 3))) == [(0, 0)]


def test_one_window_over_a_picture_of_the_models_size_is_the_model_itself():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    found = picture_scores(brightness, pixels, window=(6, 6), stride=(4, 4))
    np.testing.assert_allclose(found, brightness(pixels[None])[0], rtol=1e-6)


def test_several_views_average_probabilities():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    found = picture_scores(brightness, pixels, window=(6, 6), stride=(4, 4), flip=True)
    logits = np.asarray(resize_bilinear(jnp.asarray(brightness(pixels[None])), (6, 6)))[0]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, shares, rtol=1e-5)  # each pixel is judged by itself, so that a mirror changes nothing


def test_the_command_scores_pictures_at_their_own_size(tmp_path, capsys):
    train(tiny("segmentation"), tmp_path / "run")
    capsys.readouterr()
    assert evaluate.main([f"--workdir={tmp_path / 'run'}", "--protocol=original", "--scales=0.5,1", "--flip"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["protocol"], result["images"], result["window"], result["scales"]) == ("original", 8, [32, 32], [0.5, 1.0])
    assert 0 <= result["miou"] <= 1 and len(result["class_iou"]) == 11
    with pytest.raises(ConfigError, match="--scales=big must be numbers"):
        evaluate.main([f"--workdir={tmp_path / 'run'}", "--protocol=original", "--scales=big"])

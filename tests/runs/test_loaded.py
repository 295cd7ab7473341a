"""A run as an object gives evaluation's numbers, whatever form the images have."""

import concurrent.futures
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vitlab
from tests.processes import run_script
from tests.train.conftest import tiny_experiment, uninterrupted  # noqa: F401
from vitlab.config import ConfigError
from vitlab.data import DecodeError, open_source
from vitlab.train.loop import train


@pytest.fixture(scope="module")
def run(uninterrupted):  # noqa: F811
    return vitlab.load_run(uninterrupted)


@pytest.fixture(scope="module")
def images():
    return open_source(tiny_experiment().data, train=False).images


def test_it_knows_its_step_classes_and_preprocessing(run):
    assert run.step == 60 and run.preprocessing.image_size == (28, 28) and run.experiment == tiny_experiment()
    assert len(run.class_names) == 10 and "step=60" in repr(run)


def test_predictions_reach_the_top1_of_the_evaluation(run, uninterrupted, images):  # noqa: F811
    labels = open_source(tiny_experiment().data, train=False).labels
    predictions = run.predict(images, batch_size=16)
    top1 = np.mean([p.label == label for p, label in zip(predictions, labels, strict=True)])
    assert f'"eval_top1": {top1}' in (uninterrupted / "metrics.jsonl").read_text().splitlines()[-1]
    np.testing.assert_allclose([p.probabilities.sum() for p in predictions], 1, atol=1e-6)
    assert predictions[0].top(2)[0] == (predictions[0].name, predictions[0].probabilities.max())


def test_the_model_has_the_weights_of_the_function(run, images):
    mean, std = run.preprocessing.mean[0], run.preprocessing.std[0]
    logits = run.model((jnp.asarray(images[:3], jnp.float32) / 255 - mean) / std)
    np.testing.assert_allclose(logits, run(images[:3]), atol=1e-5)


def test_features_are_the_maps_of_the_model(run, images):
    maps = run.features(images[:5], batch_size=2)
    assert len(maps) == len(run.model.feature_info)
    for one, info in zip(maps, run.model.feature_info, strict=True):
        assert one.shape == (5, 28 // info.stride, 28 // info.stride, info.dim)
    np.testing.assert_allclose(maps[-1][4:], run.features(images[4])[-1], atol=1e-5)


def test_every_form_of_an_image_gives_the_same_logits(run, images, tmp_path):
    pixels = images[0]
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    rgb = np.repeat(pixels, 3, axis=-1)
    forms = {
        "text": str(tmp_path / "a.png"),
        "path": tmp_path / "a.png",
        "bytes": (tmp_path / "a.png").read_bytes(),
        "pillow": Image.fromarray(pixels[..., 0]),
        "pillow RGB": Image.fromarray(rgb),
        "array [h, w]": pixels[..., 0],
        "array [h, w, 3]": rgb,
        "opaque RGBA": np.concatenate([rgb, np.full_like(pixels, 255)], -1),
        "float32": pixels.astype(np.float32) / 255,
        "float16": (pixels / 255).astype(np.float16),
        "JAX": jnp.asarray(rgb / 255, jnp.float32),
    }
    expected = run(images[:1])
    for name, form in forms.items():
        np.testing.assert_allclose(run(form), expected, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(run(list(forms.values())), np.repeat(expected, len(forms), 0), atol=2e-3)


def test_bfloat16_arrays_are_floats(run, images):
    off = run.preprocess(jnp.asarray(images[0] / 255, jnp.bfloat16)).astype(int) - run.preprocess(images[0])
    assert np.abs(off).max() <= 1  # eight bits of mantissa


def test_an_image_of_another_size_is_prepared_as_evaluation_does(run):
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    assert run.preprocess(image).shape == (28, 28, 1)


def test_a_pillow_image_is_turned_as_its_exif_says(run, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    Image.fromarray(images[0][..., 0]).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(run.preprocess(image), np.rot90(images[0], -1))


def test_transparency_means_the_same_in_files_pillow_images_and_arrays(run, tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (28, 28, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for form in (Image.fromarray(rgba), rgba):
        np.testing.assert_array_equal(run.preprocess(form), run.preprocess(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 28, 28), np.uint8), r"shape=\(3, 28, 28\) is no image"),
        (np.zeros((28, 28), np.int64), "dtype=int64 is no image: it must be uint8"),
        (np.zeros((28, 28), bool), "dtype=bool is no image"),
        (np.full((28, 28), 200.0), r"must be in \[0, 1\], not \[200, 200\]"),
        (np.full((28, 28), np.nan), r"must be in \[0, 1\]"),
        (np.zeros((0, 28, 3), np.uint8), "is no image"),
        (Image.new("F", (28, 28)), 'mode "F" has no range'),
        (b"", "empty"),
    ],
)
def test_what_is_no_image_is_refused_with_the_rule(run, image, words):
    with pytest.raises(DecodeError, match=words):
        run.predict(image)


def test_a_pipe_is_no_image_file_and_does_not_hang(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="not a regular file"):
        run.predict(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError):
        run.predict(tmp_path / "none.png")


def test_no_image_gives_no_prediction_and_no_batch_size_is_refused(run):
    assert run.predict([]) == [] and run([]).shape == (0, 10)
    with pytest.raises(ValueError, match="batch_size=0"):
        run.predict([np.zeros((28, 28), np.uint8)], batch_size=0)


def test_several_threads_may_use_it(run, images):
    expected = run(images)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda i: run(images[i : i + 3]), range(0, 40, 3)):
            assert result.shape == (3, 10)
        many = list(pool.map(lambda i: run(images[i])[0], range(20)))
    np.testing.assert_allclose(many, expected[:20], atol=1e-5)


def test_steps_and_raw_weights_can_be_asked_for(tmp_path, images):
    train(tiny_experiment(ema_decay=0.8, duration="8 steps", checkpoint_every="4 steps", eval_every="8 steps"), tmp_path / "run")
    newest, older = vitlab.load_run(tmp_path / "run"), vitlab.load_run(str(tmp_path / "run"), step=4)
    raw = vitlab.load_run(tmp_path / "run", averaged=False)
    assert (newest.step, older.step, raw.step) == (8, 4, 8)
    for other in (older, raw):
        assert np.abs(newest(images[:2]) - other(images[:2])).max() > 1e-4


def test_what_is_no_run_is_refused(tmp_path, uninterrupted):  # noqa: F811
    with pytest.raises(ConfigError, match="no run folder"):
        vitlab.load_run(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        vitlab.load_run(uninterrupted, step=3)


def test_importing_vitlab_does_not_import_what_reads_checkpoints():
    module = "'orbax.checkpoint'"
    run_script(f"import sys, vitlab\nassert {module} not in sys.modules\nvitlab.load_run\nassert {module} in sys.modules")

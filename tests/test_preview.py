"""The contact sheet shows the images that the step gives to the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import write_tree
from tests.train.conftest import config_file, tiny_experiment
from vitlab import preview
from vitlab.config import AugmentConfig, ConfigError, DataConfig, LossConfig, MixConfig
from vitlab.functional import FunctionalModel
from vitlab.train.setup import set_up

MIXED = {
    "augment": AugmentConfig(crop="pad", pad=2, erase_prob=0.5),
    "mix": MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem"),
    "loss": LossConfig(label_smoothing=0.1),
}


def host_only(experiment):
    return dataclasses.replace(experiment, mix=MixConfig(), augment=dataclasses.replace(experiment.augment, erase_prob=0.0))


def test_the_images_are_those_that_the_step_gives_to_the_model(monkeypatch):
    experiment, seen = tiny_experiment(**MIXED), []

    def see(self, weights, batch, rng=None):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch["image"])
        return (jnp.zeros((len(batch["image"]), 10)),), weights["model_state"]  # in place of the network, which takes long to compile

    monkeypatch.setattr(FunctionalModel, "run", see)
    setup = set_up(experiment)
    state = setup.initial_state() | {"step": jnp.asarray(3)}
    with setup.open_train_batches(3) as batches:
        setup.train_step.lower().compile()(state, next(batches))
    jax.effects_barrier()
    shown = preview.sample(experiment, step=3, count=10)
    assert shown.images.shape == (10, 28, 28, 1)
    off = np.abs(shown.images.astype(int) - seen[0][:10].clip(0, 255))
    assert off.max() <= 0.51  # rounded to whole pixels; separately compiled programs may round a product differently


def test_an_image_has_pixels_and_shares_of_itself_and_its_partner_without_smoothing():
    experiment = dataclasses.replace(
        tiny_experiment(**MIXED), mix=MixConfig(cutmix_alpha=1.0, mode="elem"), augment=AugmentConfig(crop="pad")
    )
    whole, host = (preview.sample(e, count=99) for e in (experiment, host_only(experiment)))
    assert len(whole.images) == experiment.batch_size
    np.testing.assert_allclose(whole.shares.sum(1), 1, atol=1e-6)
    other = host.images[::-1]
    assert ((whole.images == host.images) | (whole.images == other)).all()
    labels, pairs = host.shares.argmax(1), np.arange(16)
    alone = np.where(labels == labels[::-1], 0, whole.shares[pairs, labels[::-1]])
    np.testing.assert_allclose(whole.shares[pairs, labels] + alone, 1, atol=1e-6)
    assert (whole.shares.max(1) < 0.99).any()


def test_the_sheet_has_each_image_with_its_names_below(tmp_path, capsys):
    config = config_file(tmp_path, tiny_experiment(**MIXED))
    assert preview.main([f"--config={config}", f"--output={tmp_path / 'sheet.png'}", "--images=5", "--step=2"]) == 0
    assert "5 of the 16 images of step 2, 28 x 28 pixels" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    shown = preview.sample(tiny_experiment(**MIXED), step=2, count=5)
    for i, (left, top) in enumerate((8 + 120 * (i % 3), 8 + 152 * (i // 3)) for i in range(5)):
        np.testing.assert_array_equal(sheet[top : top + 112, left : left + 112, 0], shown.images[i, ..., 0].repeat(4, 0).repeat(4, 1))
        names = sheet[top + 112 : top + 144, left : left + 112]
        assert (names < 100).sum() > 100 and (names == 255).mean() > 0.5  # dark letters on white
    assert (sheet[8 + 152 :, 8 + 240 :] == 255).all()  # there is no sixth image


def test_captions_name_two_classes_with_their_shares_and_one_without():
    names = ("ant", "bee", "cat")
    assert preview._captions(np.array([0.3, 0.7, 0.0]), names) == [("bee", " 70%"), ("ant", " 30%")]
    assert preview._captions(np.array([0.0, 0.999, 0.001]), names) == [("bee", "")]


def test_names_of_any_alphabet_and_with_line_breaks_are_drawn(tmp_path, caplog):
    names = ("кошка", "猫", "a\nb\x1b[0m", "قطة", "\U0010fffe", "e\u0301", "😀", "", " ", "x" * 500)
    images = np.zeros((len(names), 28, 28, 1), np.uint8)
    preview.draw(preview.Sample(images=images, shares=np.eye(len(names), dtype=np.float32), class_names=names, batch_size=10, bad=0))


def test_colours_and_bad_images(tmp_path, capsys):
    write_tree(tmp_path / "images")
    (tmp_path / "images" / "ant" / "3.png").write_bytes(b"")
    data = DataConfig(source="image_folder", data_dir=str(tmp_path / "images"), eval_split="train")
    config = config_file(tmp_path, tiny_experiment(data=data, batch_size=12))
    preview.main([f"--config={config}", f"--output={tmp_path / 'sheet.png'}"])
    assert "12 of the 12 images of step 0, 28 x 28 pixels; 1 of the batch could not be decoded" in capsys.readouterr().out
    assert np.ptp(np.asarray(Image.open(tmp_path / "sheet.png")), axis=-1).max() > 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output=sheet.jpg"], "must be a file *.png"),
        (["--output=nowhere/sheet.png"], "in a folder that exists"),
        (["--output=sheet.png", "--images=0"], "--images=0 at least 1"),
        (["--output=sheet.png", "--config.model.name=swim_tiny"], "did you mean swin_tiny"),
        (["--output=sheet.png", "--config.augment.policy=rand-x9"], "rand-x9"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words, tmp_path):
    config = config_file(tmp_path, tiny_experiment())
    with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
        preview.main([f"--config={config}", *arguments])

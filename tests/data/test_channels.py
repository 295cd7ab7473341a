"""Grey or colour: one colour image makes a data set RGB, and models with weights get RGB."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import smooth, write_tree
from tests.data.images import encoded
from vitlab.config import ModelConfig
from vitlab.data.channels import channels_of, model_channels
from vitlab.data.image_folder import open_image_folder

GREY = encoded(Image.fromarray(np.full((5, 5), 9, np.uint8)), "PNG")
COLOUR = encoded(Image.fromarray(np.full((5, 5, 3), 9, np.uint8)), "PNG")


def probed(images: list[bytes], labels=None, **options) -> int:
    return channels_of(lambda index, size: images[index][:size], np.zeros(len(images), int) if labels is None else labels, **options)


def test_one_image_in_colour_among_many_grey_ones_decides():
    for place in (0, 7, 150, 319):
        images = [GREY] * 320
        images[place] = COLOUR
        assert probed(images) == 3
    assert probed([GREY] * 320) == 1


def test_every_class_is_probed_even_if_there_are_more_images_than_probes():
    labels = np.repeat(np.arange(40), 50)
    images = [COLOUR if label == 33 else GREY for label in labels]
    assert probed(images, labels, probes=10) == 3
    assert probed([GREY] * 2000, labels, probes=10) == 1


def test_a_colour_image_ends_the_probing():
    read = []
    labels = np.zeros(5000, int)
    assert channels_of(lambda index, size: read.append(index) or COLOUR, labels) == 3
    assert len(read) < 100


def test_images_that_say_nothing_do_not_decide():
    assert probed([GREY, b"", b"text", GREY[:10]]) == 1
    assert probed([b"", b"text"]) == 3

    def missing(index, size):
        if index:
            return GREY
        raise OSError("gone")

    assert channels_of(missing, np.zeros(3, int)) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "JPEG2000"])
def test_the_header_of_every_format_tells(kind, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        # Files exceed 4 kB, the part that is read first: in some formats it has no header.
        grey = Image.fromarray(rng.integers(0, 256, (80, 90), dtype=np.uint8))
        (tmp_path / name / "x.png").write_bytes(encoded(grey, kind))
    assert open_image_folder(str(tmp_path), "train").channels == 1
    (tmp_path / "b" / "y.png").write_bytes(encoded(Image.fromarray(smooth(rng, 80, 90)), kind))
    assert open_image_folder(str(tmp_path), "train").channels == 3


def test_a_header_behind_much_metadata_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    data = encoded(Image.fromarray(np.zeros((9, 9), np.uint8)), "JPEG", exif=exif, icc_profile=bytes(200_000))
    assert len(data) > 2**17 and probed([data]) == 1


def test_channels_are_probed_when_they_are_asked_for(tmp_path, monkeypatch):
    write_tree(tmp_path)
    source = open_image_folder(str(tmp_path), "train")
    monkeypatch.setattr("vitlab.data.image_folder.read_bytes", lambda *_: GREY)
    assert source.channels == 1


def test_weights_get_rgb_unless_the_model_says_otherwise():
    assert model_channels(ModelConfig(), 1) == 1
    assert model_channels(ModelConfig(), 3) == 3
    for weights in ("x.safetensors", "a/b.pth.tar", "c.pth#model", "hf://owner/name"):
        assert model_channels(ModelConfig(weights=weights), 1) == 3
    for run in ("runs/a", "runs/a@3000"):  # a run's weights have the channels of the run's own images
        assert model_channels(ModelConfig(weights=run), 1) == 1
    assert model_channels(ModelConfig(weights="x.safetensors", in_channels=1), 3) == 1

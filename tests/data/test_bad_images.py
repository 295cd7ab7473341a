"""Bad images are replaced, counted by reason, and listed once over all runs in a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import write_tree
from tests.data.images import bomb, encoded
from tests.data.test_loader import RANDOM, folder, same, take, train
from tests.train.conftest import tiny_experiment
from vitlab.config import DataConfig
from vitlab.data import ArraySource, BadImages, eval_batches, open_source
from vitlab.train.loop import train as train_run
from vitlab.train.setup import Setup

REASONS = {"empty.png": "empty", "text.jpg": "not an image", "bomb.png": "too large: 17000 x 17000 pixels", "cut.jpg": "truncated"}


@pytest.fixture
def spoilt(tmp_path):
    """Returns a folder of twelve good images and four bad ones.

    Two more are a single pixel and an image with another format's extension.
    """
    root = tmp_path / "images"
    write_tree(root, size=(20, 26))
    image = Image.open(root / "bee" / "0.png")
    (root / "ant" / "empty.png").write_bytes(b"")
    (root / "ant" / "text.jpg").write_text("<html>not found</html>")
    (root / "bee" / "bomb.png").write_bytes(bomb())
    (root / "bee" / "cut.jpg").write_bytes(encoded(image, "JPEG")[:-200])
    (root / "bee" / "pixel.png").write_bytes(encoded(Image.fromarray(np.full((1, 1, 3), 77, np.uint8)), "PNG"))
    (root / "bee" / "really_a.png").write_bytes(encoded(image, "JPEG"))
    return root


def listed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_kind_is_replaced_alike_counted_and_listed_once(spoilt, tmp_path, caplog):
    path, config = tmp_path / "bad_images.jsonl", folder(spoilt, max_bad_fraction=0.5)
    expected = take(train(config, batch_size=18, bad_images=path), 2)
    same(take(train(folder(spoilt, max_bad_fraction=0.5, num_threads=3), batch_size=18, bad_images=path), 2), expected)
    lines = listed(path)
    assert {line["name"].rpartition("/")[2]: line["reason"].partition(" take")[0] for line in lines} == REASONS
    assert len(lines) == 4 and {line["split"] for line in lines} == {"train"}
    assert "4 images of train were left out: 1 " in caplog.text and "their names are in bad_images.jsonl" in caplog.text


def test_one_pixel_and_a_wrong_extension_are_images(spoilt):
    (spoilt / "bee" / "bomb.png").unlink()
    source = open_source(folder(spoilt), train=True)
    batch = take(train(folder(spoilt, max_bad_fraction=0.5), RANDOM, batch_size=len(source)), 1)[0]
    assert any((image == 77).all() for image in batch["image"])
    rows = take(eval_batches(source, data=folder(spoilt, max_bad_fraction=0.5), image_size=12, channels=3, batch_size=len(source)), 1)[0]
    good = {source.name_of(i).rpartition("/")[2] for i in np.flatnonzero(rows["mask"]).tolist()}
    assert {"pixel.png", "really_a.png"} <= good and not good & set(REASONS)


def test_a_line_that_was_cut_off_is_written_anew_and_splits_are_apart(spoilt, tmp_path):
    path, config = tmp_path / "bad_images.jsonl", folder(spoilt, max_bad_fraction=0.5)
    take(train(config, batch_size=18, bad_images=path), 1)
    whole = path.read_text()
    path.write_text(whole[:-20])
    take(train(config, batch_size=18, bad_images=path), 1)
    assert path.read_text() == whole
    source = open_source(config, train=False)
    evaluation = folder(spoilt, max_bad_fraction=0.5, eval_split="train[:100%]")
    take(eval_batches(source, data=evaluation, image_size=12, channels=3, batch_size=18, bad_images=path), 1)
    assert [line["split"] for line in listed(path)] == ["train"] * 4 + ["train[:100%]"] * 4


def test_a_run_lists_the_bad_images_of_both_splits_in_its_folder(tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_tree(tmp_path / "images" / split, per_class=8, size=(28, 28))
        (tmp_path / "images" / split / "ant" / "3.png").write_bytes(b"")
    data = DataConfig(source="image_folder", data_dir=str(tmp_path / "images"), num_threads=1)

    listing = Setup.listing_bad_images_in

    def read_only(setup, folder):  # runs only the parts of a run that handle bad images
        setup = listing(setup, folder)
        take(setup.open_train_batches(0), 1)
        setup.evaluate({}, lambda: False)
        raise KeyboardInterrupt

    monkeypatch.setattr(Setup, "listing_bad_images_in", read_only)
    monkeypatch.setattr("vitlab.train.setup.evaluate", lambda step, weights, batches, *_, **__: {"images": len(take(batches, 1))})
    with pytest.raises(KeyboardInterrupt):
        train_run(tiny_experiment(data=data), tmp_path / "run")
    lines = listed(tmp_path / "run" / "bad_images.jsonl")
    expected = [(split, str(tmp_path / "images" / name / "ant" / "3.png")) for split, name in (("train", "train"), ("test", "val"))]
    assert sorted((line["split"], line["name"]) for line in lines) == sorted(expected)
    assert {line["reason"] for line in lines} == {"empty"}


def test_a_listing_that_cannot_be_written_is_made_up_for_later_and_damaged_lines_stay(tmp_path, caplog):
    path = tmp_path / "bad_images.jsonl"
    source = ArraySource(images=np.zeros((9, 4, 4, 3), np.uint8), labels=np.zeros(9, np.int32), class_names=("ant", "bee"))
    bad = BadImages(source, 1.0, split="train", path=path)
    path.mkdir()  # a folder cannot be written as a file, not even by root
    bad.add(0)
    bad.add(1)
    path.rmdir()
    path.write_bytes(b'\xff{"split": 1\n[]\n' + b"[" * 100_000 + b'\n{"split": "train", "name": "images/1"}\ncut')
    bad.add(2)
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["name"] for line in lines[3:]] == ["images/1", "images/0", "images/2"] and len(lines) == 6
    assert caplog.text.count("bad_images.jsonl cannot be written (Is a directory); the run goes on") == 1

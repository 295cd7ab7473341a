"""Shards written from an image folder give the folder's images; damage is refused by name."""

import pathlib
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import smooth, write_tree
from vitlab.config import AugmentConfig, ConfigError, DataConfig
from vitlab.data import open_source, train_batches
from vitlab.data.decode import decode
from vitlab.data.image_folder import open_image_folder
from vitlab.data.prepare import main, prepare, verify
from vitlab.data.shards import open_shards


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """Returns a folder of two splits, PNG and JPEG."""
    root = tmp_path / "images"
    write_tree(root / "train", ("ant", "bee", "cat"), 4)
    write_tree(root / "val", ("bee",), 3)
    Image.fromarray(smooth(np.random.default_rng(5), 40, 60)).save(root / "train" / "bee" / "large.jpg", quality=90)
    return root


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_bytes_and_labels_of_the_folder(images, tmp_path):
    prepare(str(images), tmp_path / "shards", shard_size=4)
    for train, split in ((True, "train"), (False, "val")):
        source = open_source(DataConfig(source="shards", data_dir=str(tmp_path / "shards")), train=train)
        folder = open_image_folder(str(images), split)
        assert source.class_names == folder.class_names and source.channels == 3 and len(source) == len(folder)
        got = {source.name_of(i): source[i] for i in range(len(source))}
        assert got == {f"{'train' if train else 'test'}/{name}": folder[i] for i, name in enumerate(folder.files)}


def test_many_at_once_slices_and_pickling(images, tmp_path):
    prepare(str(images), tmp_path / "shards", shard_size=4)
    whole, one, other = (open_shards(str(tmp_path / "shards"), split) for split in ("train", "train[:50%]", "train[50%:]"))
    examples = whole.__getitems__(range(len(whole)))
    assert [*one.__getitems__(range(len(one))), *other.__getitems__(range(len(other)))] == examples
    assert set(open_image_folder(str(images), "train[:50%]").files) == {one.name_of(i).partition("/")[2] for i in range(len(one))}
    assert pickle.loads(pickle.dumps(whole))[7] == examples[7]
    assert len({whole.fingerprint, one.fingerprint, other.fingerprint}) == 3


def test_a_stopped_preparation_goes_on_and_ends_in_the_same_bytes(images, tmp_path, monkeypatch):
    prepare(str(images), tmp_path / "whole", shard_size=4)
    stopped = tmp_path / "stopped"
    reads = []

    def read(self, index):
        reads.append(index)
        if len(reads) == 7:
            raise KeyboardInterrupt
        return read_one(self, index)

    cls = type(open_image_folder(str(images), "train"))
    read_one = cls.__getitem__
    monkeypatch.setattr(cls, "__getitem__", read)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(images), stopped, shard_size=4, num_threads=1)
    assert (stopped / "train-00000-of-00004.array_record").exists() and not (stopped / "train-00001-of-00004.array_record").exists()
    with pytest.raises(ConfigError, match="train-00001-of-00004.array_record is not written yet"):
        open_shards(str(stopped), "train")
    kept = (stopped / "train-00000-of-00004.array_record").stat().st_mtime_ns
    prepare(str(images), stopped, shard_size=4)
    assert contents(stopped) == contents(tmp_path / "whole")
    assert (stopped / "train-00000-of-00004.array_record").stat().st_mtime_ns == kept


def test_a_lost_shard_is_written_anew_the_same(images, tmp_path):
    prepare(str(images), tmp_path / "shards", shard_size=4)
    before = contents(tmp_path / "shards")
    (tmp_path / "shards" / "train-00002-of-00004.array_record").unlink()
    (tmp_path / "shards" / "val-00000-of-00001.array_record").write_bytes(b"")
    prepare(str(images), tmp_path / "shards", shard_size=4)
    assert contents(tmp_path / "shards") == before


def test_the_short_side_only_shrinks(images, tmp_path):
    prepare(str(images), tmp_path / "shards", short_side=30)
    source, folder = open_shards(str(tmp_path / "shards"), "train"), open_image_folder(str(images), "train")
    got = {source.name_of(i).partition("/")[2]: source[i]["image"] for i in range(len(source))}
    large = decode(got.pop("bee/large.jpg"), 3)
    assert large.shape == (30, 45, 3)
    expected = Image.open(images / "train" / "bee" / "large.jpg").resize((45, 30), Image.Resampling.BICUBIC)
    assert np.abs(large.astype(int) - np.asarray(expected).astype(int)).mean() < 2  # the images were coded as JPEG twice
    assert got == {name: folder[i]["image"] for i, name in enumerate(folder.files) if name != "bee/large.jpg"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "train-00001-of-00004.array_record is missing"),
        (lambda path: path.write_bytes(b""), r"train-00001-of-00004.array_record has 0 bytes \(it is empty\)"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            r"train-00001-of-00004.array_record has \d+ bytes, not \d+ as in",
        ),
        (lambda path: (path.parent / "index.json").write_text("{"), "index.json is damaged"),
        (lambda path: (path.parent / "index.json").unlink(), "has no index.json"),
        (lambda path: shutil.rmtree(path.parent), "does not exist"),
    ],
)
def test_damaged_folders_are_refused_by_name(images, tmp_path, damage, words):
    prepare(str(images), tmp_path / "shards", shard_size=4)
    damage(tmp_path / "shards" / "train-00001-of-00004.array_record")
    with pytest.raises(ConfigError, match=words):
        open_shards(str(tmp_path / "shards"), "train")


def test_changed_bytes_are_found_by_verify_and_are_bad_images_in_training(images, tmp_path):
    prepare(str(images), tmp_path / "shards", shard_size=4)
    verify(tmp_path / "shards")
    path = tmp_path / "shards" / "train-00001-of-00004.array_record"
    source = open_shards(str(tmp_path / "shards"), "train")
    data = bytearray(path.read_bytes())
    start = data.find(source[5]["image"])
    data[start + 100 : start + 110] = bytes(10)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="train-00001-of-00004.array_record has another SHA-256"):
        main(["--verify", str(tmp_path / "shards")])
    damaged = open_shards(str(tmp_path / "shards"), "train")
    with pytest.raises(OSError, match="damaged record"):
        damaged[5]
    config = DataConfig(source="shards", num_threads=1)
    options = {"augment": AugmentConfig(crop="center", flip=False), "image_size": 16, "channels": 3, "batch_size": 13, "seed": 0}
    with train_batches(damaged, data=config, **options) as batches:
        labels = next(batches)["label"]
        assert batches.bad.counts == {"damaged record": 1}
    expected = sorted([*(source[i]["label"] for i in range(13) if i != 5), source[6]["label"]])  # its neighbour replaces the damaged record
    assert sorted(labels) == expected


def test_sources_and_destinations_that_cannot_be_used_are_refused(images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no class folder"):
        prepare(str(tmp_path / "empty"), tmp_path / "shards")
    prepare(str(images), tmp_path / "shards")
    with pytest.raises(ConfigError, match="holds the shards of another source"):
        prepare(str(images), tmp_path / "shards", short_side=20)
    (images / "train" / "ant" / "0.png").unlink()
    with pytest.raises(ConfigError, match="holds the shards of another source"):
        prepare(str(images), tmp_path / "shards")
    with pytest.raises(ConfigError, match="is not empty and holds no index.json"):
        prepare(str(images), images)
    with pytest.raises(ConfigError, match="must be at least 1"):
        prepare(str(images), tmp_path / "other", shard_size=0)
    with pytest.raises(ConfigError, match="say SRC and DST"):
        main([str(images)])
    with pytest.raises(ConfigError, match=r'no split "tset"; choices: train, val'):
        open_shards(str(tmp_path / "shards"), "tset")


def test_a_slice_in_percent_has_every_class_on_both_sides(tmp_path):
    classes = [f"class_{i}" for i in range(12)]
    write_tree(tmp_path / "images", classes, per_class=3, size=(4, 4))
    prepare(str(tmp_path / "images"), tmp_path / "shards", shard_size=7)
    for split in ("train[:90%]", "train[90%:]"):
        shards = open_shards(str(tmp_path / "shards"), split)
        assert {example["label"] for example in shards.__getitems__(range(len(shards)))} == set(range(12))

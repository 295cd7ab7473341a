"""Sources mixed by weight: exact shares, every image in turn, batches that follow from the step."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from tests.data.conftest import write_tree
from vitlab.cli import override
from vitlab.config import AugmentConfig, ConfigError, DataConfig, Experiment, SourceConfig, from_config_dict, smoke, to_config_dict, to_json
from vitlab.data import open_source
from vitlab.data.batches import Layout, Threads, TrainBatch
from vitlab.data.image_folder import open_image_folder
from vitlab.data.loader import eval_batches, train_batches
from vitlab.data.order import MixedOrder, ShuffledOrder
from vitlab.data.prepare import prepare

CENTER = AugmentConfig(crop="center", flip=False)


def which(order: MixedOrder, positions: np.ndarray) -> np.ndarray:
    return np.searchsorted(order.offsets, order(positions), side="right") - 1


@pytest.mark.parametrize("weights", [(3, 1), (30, 10), (1, 1, 1), (97, 2, 1), (1281, 50)])
def test_each_round_has_exactly_the_weights_and_any_batch_nearly(weights):
    order = MixedOrder((50, 20, 30)[: len(weights)], weights, seed=3)
    size, wanted = int(order.shares.sum()), np.array(weights) / sum(weights)
    parts = which(order, np.arange(5 * size)).reshape(5, size)
    for part, share in enumerate(wanted):
        assert ((parts == part).sum(1) * sum(weights) == size * weights[part]).all()
        for batch in (64, 100):
            counts = np.array([(row == part).sum() for row in parts.reshape(-1)[: 5 * size // batch * batch].reshape(-1, batch)])
            assert np.abs(counts - batch * share).max() <= 2 * len(weights)
    assert not np.array_equal(parts[0], parts[1])


def test_every_source_is_gone_through_before_an_image_comes_again():
    lengths = (7, 300)
    order = MixedOrder(lengths, (1, 2), seed=1)
    indices = order(np.arange(3000))
    for part, length in enumerate(lengths):
        own = indices[(indices >= 7) == bool(part)] - order.offsets[part]
        epochs = own[: len(own) // length * length].reshape(-1, length)
        assert (np.sort(epochs, 1) == np.arange(length)).all() and len({tuple(epoch) for epoch in epochs}) > 1
    first = indices[indices < 7]
    # The first source has its order without a mixture.
    np.testing.assert_array_equal(first, ShuffledOrder(7, seed=1)(np.arange(len(first))))
    assert not np.array_equal(*(MixedOrder((9, 9), (1, 1), s)(np.arange(99)) for s in (0, 1)))


def test_sources_of_one_length_have_orders_of_their_own():
    order = MixedOrder((50, 50), (1, 1), seed=0)
    indices = order(np.arange(100))
    assert not np.array_equal(indices[indices < 50], indices[indices >= 50] - 50)


def test_any_cut_gives_the_same_order_and_copies_lie_side_by_side():
    order = MixedOrder((6, 40), (2, 3), seed=5, repeats=3)
    whole = order(np.arange(900))
    again = [pickle.loads(pickle.dumps(order))(part) for part in np.split(np.arange(900), [5, 6, 400, 401, 777])]
    np.testing.assert_array_equal(np.concatenate(again), whole)
    np.testing.assert_array_equal(order(np.arange(600, 700)), whole[600:700])  # also backwards
    runs = whole.reshape(-1, 3)
    large = runs[runs[:, 0] >= 6]
    assert (large[:13] == large[:13, :1]).all()  # 40 is no multiple of 3: the last run of an epoch has two images


@pytest.fixture
def two(tmp_path) -> DataConfig:
    """Returns a config of two sources: 12 images, 3 parts, and shards of 20 others, 1 part."""
    write_tree(tmp_path / "folder")
    write_tree(tmp_path / "others", per_class=10, size=(24, 18))
    prepare(str(tmp_path / "others"), tmp_path / "shards", shard_size=7)
    more = SourceConfig(source="shards", data_dir=str(tmp_path / "shards"))
    folder = str(tmp_path / "folder")
    return DataConfig(source="image_folder", data_dir=folder, eval_split="train", weight=3, more_sources=(more,), num_threads=1)


def test_a_mixture_is_a_source_of_all_images(two):
    mixed = open_source(two, train=True)
    parts = [open_source(dataclasses.replace(two, more_sources=()), train=True), open_source(DataConfig(**dict_of(two)), train=True)]
    assert len(mixed) == 32 and mixed.class_names == ("ant", "bee") and mixed.channels == 3
    every = [(part[i], part.name_of(i)) for part in parts for i in range(len(part))]
    assert [(mixed[i], mixed.name_of(i)) for i in range(32)] == every
    some = [31, 0, 12, 11, 0, 5]
    assert mixed.__getitems__(some) == [every[i][0] for i in some]
    assert pickle.loads(pickle.dumps(mixed))[20] == every[20][0]
    with pytest.raises(IndexError, match="index=32"):
        mixed[32]
    other = dataclasses.replace(two, weight=2)
    assert len({mixed.fingerprint, open_source(other, train=True).fingerprint, *(part.fingerprint for part in parts)}) == 4
    assert open_source(two, train=False).fingerprint == parts[0].fingerprint  # evaluation uses the first source only


def dict_of(config: DataConfig) -> dict:
    return dataclasses.asdict(config.more_sources[0])


def batches(config, count, **changes):
    options = {"image_size": 12, "channels": 3, "batch_size": 8, "seed": 3, "augment": CENTER} | changes
    with train_batches(open_source(config, train=True), data=config, **options) as source:
        return [next(source) for _ in range(count)]


def test_batches_are_the_same_from_any_step_and_over_processes_and_workers(two):
    whole = batches(two, 6)
    for got, expected in (
        (batches(two, 2, start_step=4), whole[4:]),
        (batches(dataclasses.replace(two, num_workers=1, num_threads=2), 6), whole),
    ):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["label"], b["label"])
    parts = [batches(two, 6, process_index=i, process_count=4) for i in range(4)]
    for step in range(6):
        np.testing.assert_array_equal(np.concatenate([part[step]["image"] for part in parts]), whole[step]["image"])
    evaluation = list(eval_batches(open_source(two, train=False), data=two, image_size=12, channels=3, batch_size=8))
    assert sum(batch["mask"].sum() for batch in evaluation) == 12


def test_a_process_reads_no_other_rows(two, monkeypatch):
    source = open_source(two, train=True)
    reads, cls, read = [], type(source), type(source).__getitems__
    monkeypatch.setattr(cls, "__getitems__", lambda self, indices: reads.extend(indices) or read(self, indices))
    whole = source.order(3)(np.arange(8))
    layout = Layout(size=(12, 12), channels=3, batch_size=8, process_index=1, process_count=2)
    TrainBatch(source, CENTER, layout, 3, Threads(1))(0)
    assert reads == whole[4:].tolist()


def test_bad_images_of_a_part_are_named(two, caplog):
    folder = open_image_folder(two.data_dir, "train")
    (folder.root / folder.files[4]).write_bytes(b"no image")
    batches(dataclasses.replace(two, max_bad_fraction=0.1), 6)
    assert caplog.text.count("4.png cannot be decoded (not an image)") == 1


def test_other_classes_and_channels_are_refused(two, tmp_path):
    shutil.move(tmp_path / "folder" / "bee", tmp_path / "folder" / "wasp")
    with pytest.raises(ConfigError, match=r'class 1 is "wasp" in image_folder \S+folder \(train\), "bee" in shards \S+shards \(train\)'):
        open_source(two, train=True)
    write_tree(tmp_path / "folder", classes=("bee",))
    with pytest.raises(ConfigError, match=r"the same classes: image_folder \S+ \(train\) has 3, shards \S+ \(train\) has 2"):
        open_source(two, train=True)
    bundled = SourceConfig(source="bundled", weight=2)
    (tmp_path / "names").mkdir()
    names = open_source(DataConfig(), train=True).class_names
    write_tree(tmp_path / "names", classes=[name.replace("/", "_") for name in names], per_class=1)
    shutil.move(tmp_path / "names" / "T-shirt_top", tmp_path / "names" / "T")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    lines = [f"names/{'T' if name.startswith('T-') else name}/0.png,{name}" for name in names]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    data = DataConfig(source="image_folder", data_dir=str(tmp_path / "all.csv"), more_sources=(bundled,))
    with pytest.raises(ConfigError, match=r"the same channels: image_folder \S+ \(train\) has 3, bundled \(train\) has 1"):
        open_source(data, train=True)


def test_configs_carry_sources_there_and_back(two):
    experiment = Experiment(data=two)
    assert from_config_dict(to_config_dict(experiment)) == experiment
    assert from_config_dict(json.loads(to_json(experiment))) == experiment
    assert smoke(experiment).data.more_sources == ()
    changed = override(Experiment(), {"data.more_sources": "({'source': 'shards', 'data_dir': '/x', 'weight': 2},)"})
    assert changed.data.more_sources == (SourceConfig(source="shards", data_dir="/x", weight=2),)
    for text, words in (
        ("({'source': 'shards', 'wieght': 2},)", "unknown key data.more_sources.wieght: did you mean weight"),
        ("({'source': 'shard'},)", "data.more_sources.source='shard' must be one of"),
        ("({'source': 'shards', 'weight': 0},)", "weight=0 must be in .1, "),
        ("('shards',)", "data.more_sources='shards' must be a group of keys: source, data_dir"),
    ):
        with pytest.raises(ConfigError, match=words):
            override(Experiment(), {"data.more_sources": text})
    with pytest.raises(ConfigError, match=r"data.weight=0 must be in \[1, "):
        override(Experiment(), {"data.weight": "0"})

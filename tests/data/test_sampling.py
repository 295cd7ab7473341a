"""Class-balanced batches of a folder, and sources that cannot be sampled so."""

import numpy as np
import pytest

from tests.data.conftest import write_tree
from vitlab.config import AugmentConfig, ConfigError, DataConfig, SourceConfig
from vitlab.data import open_source
from vitlab.data.labels import labels_of
from vitlab.data.loader import train_batches
from vitlab.data.prepare import prepare


@pytest.fixture
def uneven(tmp_path) -> str:
    write_tree(tmp_path / "images", ("ant",), 30)
    write_tree(tmp_path / "images", ("bee",), 3)
    return str(tmp_path / "images")


def batches(data: DataConfig, count: int, **options) -> list[dict[str, np.ndarray]]:
    options = {"image_size": 12, "channels": 3, "batch_size": 16, "seed": 3, "augment": AugmentConfig(crop="center")} | options
    with train_batches(open_source(data, train=True), data=data, **options) as source:
        return [next(source) for _ in range(count)]


def test_balanced_batches_are_the_same_from_any_step_and_over_processes_and_workers(uneven):
    data = DataConfig(source="image_folder", data_dir=uneven, sampling="balanced", num_threads=1)
    whole = batches(data, 16)
    assert np.bincount(np.concatenate([batch["label"] for batch in whole])).tolist() == [128, 128]
    workers = DataConfig(source="image_folder", data_dir=uneven, sampling="balanced", num_threads=2, num_workers=1)
    for got, expected in ((batches(data, 2, start_step=5), whole[5:7]), (batches(workers, 3), whole[:3])):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["label"], b["label"])
    parts = [batches(data, 1, process_index=i, process_count=2)[0] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts]), whole[0]["image"])


def test_images_in_memory_can_be_balanced():
    data = DataConfig(train_split="train[:300]", sampling="balanced")
    labels = np.concatenate([batch["label"] for batch in batches(data, 65, batch_size=4, channels=1, image_size=28)])
    assert np.bincount(labels[:260]).tolist() == [26] * 10


def test_sources_that_do_not_know_their_labels_are_refused(uneven, tmp_path):
    prepare(uneven, tmp_path / "shards")
    with pytest.raises(ConfigError, match='data.sampling="balanced" needs the labels.*image_folder'):
        open_source(DataConfig(source="shards", data_dir=str(tmp_path / "shards"), sampling="balanced"), train=True)
    with pytest.raises(ConfigError, match="data.more_sources"):
        DataConfig(sampling="balanced", more_sources=(SourceConfig(),))
    mixed = open_source(DataConfig(more_sources=(SourceConfig(train_split="test"),)), train=True)
    assert len(labels_of(mixed, "x")) == len(mixed) and labels_of(mixed, "x")[-1] == mixed[len(mixed) - 1]["label"]

"""Random bit flips in data files never give a wrong label in silence.

Damage is counted and replaced, or refused.
"""

import pathlib
import random
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.data.test_records import COUNT, records_of, shards, tfds
from tests.data.test_tfrecord import example, framed
from vitlab.config import AugmentConfig, ConfigError, DataConfig
from vitlab.data import BadImagesError, Source, train_batches
from vitlab.data.shards import open_shards
from vitlab.data.tfds import open_tfds
from vitlab.data.tfrecord import Layout, open_tfrecords

READS, EPOCHS, RECORDS, DESCRIPTIONS = 1500, 100, 1500, 300  # damaged files of each kind

pytestmark = pytest.mark.slow


def flips(path: pathlib.Path, times: int, seed: int) -> Iterator[int]:
    """Damages the file, one bit at a time; every second bit lies outside of padding."""
    whole, rng = path.read_bytes(), random.Random(seed)
    content = [place for place, byte in enumerate(whole) if byte]
    for i in range(times):
        place = rng.choice(content) if i % 2 else rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        yield place
    path.write_bytes(whole)


def reads(source: Source, expected: list[dict], outcomes: Counter) -> None:
    """Checks that every record is read as it was written, or raises OSError."""
    assert len(source) == len(expected)
    damaged = []
    for i, example_ in enumerate(expected):
        try:
            assert source[i] == example_
        except OSError:
            damaged.append(i)
    outcomes["damaged" if damaged else "whole"] += 1
    try:
        assert source.__getitems__(range(len(expected))) == expected and not damaged
    except OSError:
        assert damaged


def trains(source: Source, outcomes: Counter) -> None:
    """Checks that an epoch has all its images, each with its own label.

    `records_of` says which grey value belongs to which image.
    """
    data, augment = DataConfig(num_threads=1, max_bad_fraction=1.0), AugmentConfig(crop="center", flip=False)
    with train_batches(source, augment=augment, data=data, image_size=8, channels=3, batch_size=8, seed=0) as batches:
        try:
            epoch = [next(batches) for _ in range(COUNT // 8)]
        except BadImagesError as error:
            assert f"none of the {COUNT} images can be decoded" in str(error)
            outcomes["refused"] += 1
            return
        bad = len(batches.bad)
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in epoch]) // 10
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in epoch]), numbers % 3)
    assert len(set(numbers)) == COUNT - bad
    outcomes["replaced" if bad else "whole"] += 1


@pytest.mark.parametrize("kind", [shards, tfds])
def test_array_record_files(tmp_path, kind):
    source, path = kind(tmp_path, records_of([i % 3 for i in range(COUNT)]))
    expected, outcomes = [source[i] for i in range(COUNT)], Counter()
    open_again: Callable[[], Source] = {
        shards: lambda: open_shards(str(tmp_path), "train"),
        tfds: lambda: open_tfds("dots", str(tmp_path), "train"),
    }[kind]
    for _ in flips(path, READS, seed=1):
        reads(open_again(), expected, outcomes)
    assert sum(outcomes.values()) == READS and outcomes["damaged"] > READS / 4
    for _ in flips(path, EPOCHS, seed=2):
        trains(open_again(), outcomes)
    assert outcomes["replaced"] > EPOCHS / 4
    print(kind.__name__, dict(outcomes))


def test_tfrecord_files_every_flip_is_refused(tmp_path):
    images = [random.Random(i).randbytes(300) for i in range(8)]
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(b"".join(framed(example(image, 1 + i % 3)) for i, image in enumerate(images)))
    assert [x["label"] for x in map(open_tfrecords(str(tmp_path), (), Layout())["train"].__getitem__, range(8))] == [
        i % 3 for i in range(8)
    ]
    outcomes = Counter()
    for _ in flips(path, RECORDS, seed=3):
        with pytest.raises(ConfigError, match="train-00000-of-00001"):
            source = open_tfrecords(str(tmp_path), (), Layout())["train"]
            [source[i] for i in range(len(source))]
        outcomes["refused"] += 1
    assert outcomes["refused"] == RECORDS
    print(dict(outcomes))


@pytest.mark.parametrize("name", ["index.json", "dataset_info.json", "features.json"])
def test_descriptions_open_with_the_right_labels_or_are_refused(tmp_path, name):
    kind = shards if name == "index.json" else tfds
    source, path = kind(tmp_path, records_of([i % 3 for i in range(COUNT)]))
    expected, outcomes = [source[i] for i in range(COUNT)], Counter()
    for _ in flips(path.parent / name, DESCRIPTIONS, seed=4):
        try:
            source = open_shards(str(tmp_path), "train") if kind is shards else open_tfds("dots", str(tmp_path), "train")
            for i in range(min(len(source), COUNT)):
                assert source[i] == expected[i]
            outcomes["opened"] += 1
        except ConfigError:
            outcomes["refused"] += 1
        except OSError:
            outcomes["bad images"] += 1
    assert sum(outcomes.values()) == DESCRIPTIONS and outcomes["refused"]
    print(name, dict(outcomes))

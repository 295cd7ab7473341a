"""Damaged records, and labels outside of the classes, are counted and replaced.

Shards and TFDS data sets behave alike.
"""

import io
import pathlib
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image

from tests.data.conftest import smooth
from tests.data.test_tfds import example, write_tfds
from vitlab.config import AugmentConfig, DataConfig
from vitlab.data import BadImagesError, Source, eval_batches, train_batches
from vitlab.data.shards import Index, Shard, open_shards, sha256
from vitlab.data.tfds import open_tfds

COUNT = 24


def records_of(labels: list[int]) -> list[bytes]:
    """Returns one PNG per label; image i has the grey value 10 * i."""
    records = []
    for i, label in enumerate(labels):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(buffer, "PNG")
        records.append(example(buffer.getvalue(), label % 2**64, extra=False))
    return records


def write_records(path: pathlib.Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def shards(folder: pathlib.Path, records: list[bytes]) -> tuple[Source, pathlib.Path]:
    path = folder / "train-00000-of-00001.array_record"
    write_records(path, records)
    shard = Shard(file=path.name, records=len(records), size=path.stat().st_size, sha256=sha256(epath.Path(path)))
    Index(class_names=("ant", "bee", "cat"), channels=3, short_side=None, sources={}, splits={"train": (shard,)}).write(epath.Path(folder))
    return open_shards(str(folder), "train"), path


def tfds(folder: pathlib.Path, records: list[bytes]) -> tuple[Source, pathlib.Path]:
    write_tfds(folder, {"train": records})
    return open_tfds("dots", str(folder), "train"), folder / "dots" / "1.0.0" / "dots-train.array_record-00000-of-00001"


def train(source: Source, steps: int, **changes):
    data = DataConfig(num_threads=1, **{"max_bad_fraction": 1.0, **changes})
    augment = AugmentConfig(crop="center", flip=False)
    with train_batches(source, augment=augment, data=data, image_size=8, channels=3, batch_size=8, seed=0) as batches:
        return [next(batches) for _ in range(steps)], batches.bad


@pytest.mark.parametrize("kind", [shards, tfds])
def test_labels_outside_the_classes_are_replaced_counted_and_never_trained_on(tmp_path, kind):
    wrong = {3: 99, 7: -1, 11: 2**31, 12: 3, 20: 2**63 - 1, 21: -(2**63)}
    source, _ = kind(tmp_path, records_of([wrong.get(i, i % 3) for i in range(COUNT)]))
    batches, bad = train(source, 2 * COUNT // 8)
    for batch in batches:
        numbers = batch["image"][:, 0, 0, 0] // 10
        np.testing.assert_array_equal(batch["label"], numbers % 3)
        assert not set(numbers) & set(wrong)
    assert bad.counts == {f"label {label} is not in 0..2": 1 for label in wrong.values()}
    with pytest.raises(BadImagesError, match=r"label -?\d+ is not in 0..2"):
        train(source, COUNT // 8, max_bad_fraction=0.1)
    data = DataConfig(num_threads=1, max_bad_fraction=1.0)
    with eval_batches(source, data=data, image_size=8, channels=3, batch_size=COUNT) as batches:
        (batch,) = batches
    assert set(np.flatnonzero(~batch["mask"])) == set(wrong)


@pytest.mark.parametrize("kind", [shards, tfds])
def test_a_flipped_bit_is_a_bad_image_and_its_neighbour_takes_its_place(tmp_path, kind):
    records = records_of([i % 3 for i in range(COUNT)])
    source, path = kind(tmp_path, records)
    data = bytearray(path.read_bytes())
    data[data.find(records[5]) + 20] ^= 4
    path.write_bytes(data)
    source = pickle.loads(pickle.dumps(source))  # pickling opens the files anew
    with pytest.raises(OSError, match="damaged record"):
        source[5]
    batches, bad = train(source, COUNT // 8)
    assert bad.counts == {"damaged record": 1}
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]) // 10
    assert sorted(numbers) == sorted([*range(5), 6, *range(6, COUNT)])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), numbers % 3)


@pytest.mark.parametrize("kind", [shards, tfds])
def test_a_file_that_vanishes_or_is_another_is_bad_images(tmp_path, kind):
    source, path = kind(tmp_path, records_of([i % 3 for i in range(COUNT)]))
    for change in (lambda: path.write_bytes(smooth(np.random.default_rng(0), 200, 200).tobytes()), path.unlink):
        change()
        with pytest.raises(BadImagesError, match="damaged record"):
            train(pickle.loads(pickle.dumps(source)), 1, max_bad_fraction=0.1)

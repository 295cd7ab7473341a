"""TFDS data sets in array_record, written here by hand, read without TensorFlow."""

import io
import json
import pathlib
import random
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from tests.data.conftest import smooth
from vitlab.config import ConfigError
from vitlab.data.example import file_name, image_and_label, integer
from vitlab.data.tfds import open_tfds


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(kind: int, values: bytes) -> bytes:
    return field(kind, values)


def example(image: bytes, label: int, *, packed: bool = True, extra: bool = True) -> bytes:
    integers = field(1, varint(label)) if packed else varint(1 << 3) + varint(label)
    entries = [field(1, b"image") + field(2, feature(1, field(1, image))), field(1, b"label") + field(2, feature(3, integers))]
    if extra:
        entries.insert(0, field(1, b"score") + field(2, feature(2, field(1, struct.pack("<f", 0.5)))))
    return field(1, b"".join(field(1, entry) for entry in entries))


@pytest.mark.parametrize("packed", [True, False])
def test_examples_are_read_in_both_encodings_of_integers(packed):
    assert image_and_label(example(b"x" * 300, 2**62 + 5, packed=packed)) == (b"x" * 300, 2**62 + 5)


@pytest.mark.parametrize("record", [b"", b"\x0a\xff", b"hello world", example(b"x", 1)[:-3]])
def test_what_is_no_example_is_refused(record):
    with pytest.raises(ValueError, match="record"):
        image_and_label(record)


@pytest.mark.parametrize("field_of", [lambda number: number, lambda number: field(1, number)])
def test_an_integer_of_megabytes_is_refused_at_once(field_of):
    begun = time.monotonic()
    entry = field(1, b"label") + field(2, feature(3, field_of(bytes([1 << 3]) + b"\x80" * 3_000_000 + b"\x01")))
    for read in (image_and_label, file_name, lambda record: integer(record, b"label", 0, len(record))):
        with pytest.raises(ValueError, match="the record"):
            read(field(1, field(1, entry)))
            raise ValueError("the record has no file name, and is not looked at further")
    assert time.monotonic() - begun < 1


def test_an_integer_has_64_bits_and_ends_where_its_list_ends():
    assert image_and_label(example(b"x", 2**64 - 1)) == (b"x", -1)
    for integers in (varint(2**64), b"\x80" * 10 + b"\x01", b"\x80", b""):
        entries = [field(1, b"label") + field(2, feature(3, field(1, integers))), field(1, b"image") + field(2, feature(1, field(1, b"x")))]
        with pytest.raises(ValueError, match="record"):
            image_and_label(field(1, b"".join(field(1, entry) for entry in entries)))


def test_whatever_the_bytes_a_record_is_an_example_or_a_value_error():
    rng, record, refused = random.Random(0), example(b"x" * 40, 7), 0
    for _ in range(3000):
        spoilt = bytearray(record)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        for read in (image_and_label, file_name):
            try:
                read(bytes(spoilt))
            except ValueError:
                refused += 1
    assert refused > 1000


def write_tfds(root: pathlib.Path, records: dict[str, list[bytes]]) -> pathlib.Path:
    """Writes the data set "dots" of three classes, as `tfds build --file_format=array_record` does.

    Returns:
      The data set's folder.
    """
    folder = root / "dots" / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, items in records.items():
        writer = ArrayRecordWriter(str(folder / f"dots-{split}.array_record-00000-of-00001"), "group_size:1")
        for record in items:
            writer.write(record)
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        size = sum(map(len, items))
        splits.append({"name": split, "shardLengths": [str(len(items))], "numBytes": str(size), "filepathTemplate": template})
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "dots", "version": "1.0.0", "fileFormat": "array_record", "splits": splits})
    )
    feature_of = {
        "image": {
            "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
            "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
        },
        "label": {"pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}},
    }
    features = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {"features": feature_of}}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "label.labels.txt").write_text("red\ngreen\nblue\n")
    return folder


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth(np.random.default_rng(seed), 9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, {split: [example(png(i), i % 3, extra=False) for i in range(n)] for split, n in (("train", 10), ("test", 4))})
    return root


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "text", [b"", b"[]", b"\xff\xfe", b'{"a":' * 50_000, b"9" * 5000, b'{"splits": 3}', b'{"pythonClassName": "os.nothing"}']
)
def test_damaged_descriptions_are_refused_in_one_line(tmp_path, name, text):
    folder = write_tfds(tmp_path, {"train": [example(png(i), i % 3) for i in range(4)]})
    (folder / name).write_bytes(text)
    with pytest.raises(ConfigError, match='"dots"'):
        open_tfds("dots", str(tmp_path), "train")


def test_splits_slices_and_names(data_dir):
    source = open_tfds("dots", str(data_dir), "train[2:7]")
    assert len(source) == 5 and source.channels == 3 and source.class_names == ("red", "green", "blue")
    assert [source[i]["label"] for i in range(5)] == [2, 0, 1, 2, 0]
    assert [x["label"] for x in source.__getitems__([4, 0])] == [0, 2]
    assert source.name_of(3) == "train[2:7]/3"
    assert source.fingerprint != open_tfds("dots", str(data_dir), "test").fingerprint


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("dots", "tset", "did you mean test"),
        ("dits", "train", 'no data set "dits"'),
        (None, "train", "data.name"),
        ("dots", "train[5:5]", "train"),
    ],
)
def test_what_is_not_there_is_refused(data_dir, name, split, words):
    with pytest.raises(ConfigError, match=words):
        source = open_tfds(name, str(data_dir), split)
        assert len(source), 'split "train[5:5]" is empty'


def test_reading_brings_no_tensorflow(data_dir):
    code = (
        "import sys; from vitlab.data.tfds import open_tfds\n"
        f"open_tfds('dots', {str(data_dir)!r}, 'train')[0]; print('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"

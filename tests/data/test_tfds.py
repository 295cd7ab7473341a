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
from vitlab.data.fields import decode_example
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


def record(image: bytes, boxes: list[list[float]], labels: list[int], mask: bytes) -> bytes:
    """An example as TFDS writes it with a mask and a sequence of objects."""
    features = {
        b"image": feature(1, field(1, image)),
        b"mask": feature(1, field(1, mask)),
        b"depth": feature(2, field(1, np.arange(81, dtype="<f4").tobytes())),
        b"weight": feature(2, field(1, struct.pack("<f", 2.5))),
        b"objects/bbox": feature(2, field(1, np.array(boxes, "<f4").tobytes())),
        b"objects/label": feature(3, field(1, b"".join(map(varint, labels)))),
    }
    return field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in features.items()))


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


def write_tfds(root: pathlib.Path, records: dict[str, list[bytes]], more: dict[str, dict] | None = None) -> pathlib.Path:
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
        **(more or {}),
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


def python_class(name: str, module: str, **content) -> dict:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{module}.{name}", **content}


def tensor(*dimensions: int) -> dict:
    shape = {"shape": {"dimensions": list(map(str, dimensions))}} if dimensions else {"shape": {}}
    return python_class("Tensor", "tensor_feature", tensor={**shape, "dtype": "float32", "encoding": "none"})


MORE = {
    "mask": python_class(
        "Image", "image_feature", image={"shape": {"dimensions": ["-1", "-1", "1"]}, "dtype": "uint8", "encodingFormat": "png"}
    ),
    "depth": tensor(9, 9),
    "weight": tensor(),
    "objects": python_class(
        "Sequence",
        "sequence_feature",
        sequence={
            "feature": python_class(
                "FeaturesDict",
                "features_dict",
                featuresDict={
                    "features": {
                        "bbox": python_class(
                            "BBoxFeature", "bounding_boxes", boundingBox={"shape": {"dimensions": ["4"]}, "dtype": "float32"}
                        ),
                        "label": python_class("ClassLabel", "class_label_feature", classLabel={"numClasses": "2"}),
                    }
                },
            ),
            "length": "-1",
        },
    ),
}
FILES = ("image=image", "segmentation=mask classes=a,b", "depth=depth", "boxes=objects/bbox", "labels=objects/label", "weight=weight")


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.uint8([0, 1, 255]), (9, 3))).save(buffer, "PNG")
    items = [record(png(0), [[0, 1 / 3, 2 / 3, 1]], [1], buffer.getvalue()), record(png(1), [], [], buffer.getvalue())]
    folder = write_tfds(root, {"train": items, "test": items}, MORE)
    (folder / "objects-label.labels.txt").write_text("cat\ndog\n")
    return root


def test_features_become_fields_by_their_names(features_dir):
    source = open_tfds("dots", str(features_dir), "train", FILES)
    first, second = (decode_example(source[i], source.fields) for i in range(2))
    assert first["image"].shape == (9, 9, 3) and source.channels == 3
    np.testing.assert_array_equal(np.unique(first["segmentation"]), [0, 1, 255])
    np.testing.assert_array_equal(first["depth"].ravel(), np.arange(81))
    np.testing.assert_allclose(first["boxes"][0], [3, 0, 9, 6, 1, 0, 36], rtol=1e-6)
    assert (first["boxes"][1:] == -1).all() and (second["boxes"] == -1).all()
    assert first["labels"].tolist() == [0, 1] and second["labels"].tolist() == [0, 0] and first["weight"] == 2.5
    assert source.fields["boxes"].class_names == ("cat", "dog")
    assert set(open_tfds("dots", str(features_dir), "train", FILES, names=("depth",)).fields) == {"image", "depth"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("segmentation=masks", "no such feature.*mask"),
        ("boxes=objects/bboxes", "no such feature.*bbox"),
        ("count=depth", "must be one number"),
        ("labels=weight", "needs a ClassLabel"),
    ],
)
def test_features_that_do_not_fit_are_refused(features_dir, entry, words):
    with pytest.raises(ConfigError, match=words):
        open_tfds("dots", str(features_dir), "train", ("image=image", entry))

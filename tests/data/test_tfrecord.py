"""TFRecord files, written here by hand, become shards of their images.

Damage is reported by file and offset.
"""

import pathlib
import struct
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import smooth
from tests.data.test_tfds import feature, field, varint
from vitlab.config import ConfigError
from vitlab.data.crc32c import crc32c
from vitlab.data.prepare import main, prepare
from vitlab.data.shard_writer import order_of
from vitlab.data.shards import open_shards
from vitlab.data.tfrecord import Layout, open_tfrecords

LAYOUT = Layout()


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, B.4, and the check value of the CRC catalogue
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_checksums_are_those_that_are_published(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [255, 256, 257, 259, 511, 1024, 1025, 70_000, 600_001])
def test_checksums_of_blocks_are_those_byte_by_byte(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert crc32c(data) == slow_crc32c(data) == crc32c(memoryview(data))


def slow_crc32c(data: bytes) -> int:
    table = [i for i in range(256)]
    for _ in range(8):
        table = [i >> 1 ^ 0x82F63B78 * (i & 1) for i in table]
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[crc & 255 ^ byte] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = slow_crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def example(image: bytes, label: int, image_key: str = "image/encoded", label_key: str = "image/class/label") -> bytes:
    features = {
        "image/class/text": feature(1, field(1, b"an ant")),
        image_key: feature(1, field(1, image)),
        "image/object/bbox/xmin": feature(2, b""),  # empty lists, as in ImageNet
        label_key: feature(3, field(1, varint(label))),
    }
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, value)) for key, value in features.items()))


def encoded(seed: int, folder: pathlib.Path) -> bytes:
    path = folder / "image.png"
    Image.fromarray(smooth(np.random.default_rng(seed), 16, 21)).save(path)
    return path.read_bytes()


@pytest.fixture
def records(tmp_path) -> pathlib.Path:
    """Returns 13 training images in two files, 4 for validation; labels are 1 to 3."""
    root = tmp_path / "records"
    root.mkdir()
    for split, sizes in (("train", (7, 6)), ("validation", (4,))):
        seed = 100 * (split == "train")
        for number, size in enumerate(sizes):
            first = sum(sizes[:number])
            items = [framed(example(encoded(seed + i, tmp_path), 1 + i % 3)) for i in range(first, first + size)]
            (root / f"{split}-{number:05}-of-{len(sizes):05}").write_bytes(b"".join(items))
    return root


def offset_of(path: pathlib.Path, number: int) -> int:
    data, offset = path.read_bytes(), 0
    for _ in range(number):
        offset += 16 + struct.unpack_from("<Q", data, offset)[0]
    return offset


def test_shards_hold_the_images_and_labels_of_the_records(records, tmp_path, capsys):
    assert main([str(records), str(tmp_path / "shards"), "--tfrecord", "--shard_size=5"]) == 0
    assert "train: 13 images in 3 shards" in capsys.readouterr().out and "tensorflow" not in sys.modules
    for split, seed, count in (("train", 100, 13), ("validation", 0, 4)):
        source = open_shards(str(tmp_path / "shards"), split)
        assert source.class_names == ("1", "2", "3") and source.channels == 3 and len(source) == count
        got = sorted((source[i]["label"], source[i]["image"]) for i in range(count))
        assert got == sorted((i % 3, encoded(seed + i, tmp_path)) for i in range(count))
    second = offset_of(records / "validation-00000-of-00001", 1)
    assert f"validation/validation-00000-of-00001@{second}" in {source.name_of(i) for i in range(4)}


def test_a_class_list_names_the_classes_from_the_first_label_on(records, tmp_path):
    (records / "classes.txt").write_text("ant\nbee\ncat\n")
    with pytest.raises(ConfigError, match=r"record at byte \d+: label 3 is not in 0..2, as classes.txt is long; see --first_label"):
        prepare(str(records), tmp_path / "shards", tfrecord=LAYOUT)
    assert not (tmp_path / "shards").exists()
    prepare(str(records), tmp_path / "shards", tfrecord=Layout(first_label=1))
    source = open_shards(str(tmp_path / "shards"), "train")
    assert source.class_names == ("ant", "bee", "cat") and {source[i]["label"] for i in range(13)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("number", "at", "words"),
    [
        (2, 3, "its length has another checksum"),
        (2, 200, "its bytes have another checksum"),  # damage in an image: found when some images are read for their channels
        (2, -1, "its bytes have another checksum"),  # damage of the checksum itself
        (2, 13, "its bytes have another checksum"),  # damage of a length inside the message: found before anything is written
        (6, "cut", "the file ends within its"),
        (6, "header", "the file ends within its header"),
    ],
)
def test_damage_is_named_by_file_and_offset_and_leaves_no_half_shard(records, tmp_path, number, at, words):
    path = records / "train-00000-of-00002"
    begin, end = offset_of(path, number), offset_of(path, number + 1)
    data = bytearray(path.read_bytes())
    if at == "cut":
        data = data[: end - 30]
    elif at == "header":
        data = data[: begin + 5]
    else:
        data[(begin if at >= 0 else end) + at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"train-00000-of-00002, record at byte {begin}: {words}.*copy the file anew"):
        prepare(str(records), tmp_path / "shards", shard_size=4, tfrecord=LAYOUT)
    assert not (tmp_path / "shards").exists()


def test_damage_that_is_met_in_writing_leaves_no_half_shard_and_the_whole_file_goes_on(records, tmp_path, monkeypatch):
    monkeypatch.setattr("vitlab.data.tfrecord.channels_of", lambda *_, **__: 3)
    source = open_tfrecords(str(records), ("train",), LAYOUT)["train"]
    damaged = order_of(source)[6]  # the third record of the second shard
    path, begin = records / source.files[damaged].split("@")[0], int(source.files[damaged].split("@")[1])
    whole = path.read_bytes()
    path.write_bytes(whole[: begin + 200] + bytes([whole[begin + 200] ^ 1]) + whole[begin + 201 :])
    with pytest.raises(ConfigError, match=rf"{path.name}, record at byte {begin}: its bytes have another checksum; copy the file anew"):
        prepare(str(records), tmp_path / "shards", shard_size=4, tfrecord=LAYOUT)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["index.json", "train-00000-of-00004.array_record"]
    path.write_bytes(whole)
    kept = (tmp_path / "shards" / "train-00000-of-00004.array_record").stat().st_mtime_ns
    for folder in ("shards", "others"):
        prepare(str(records), tmp_path / folder, shard_size=4, tfrecord=LAYOUT)
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("shards", "others"))
    assert one == other and len(one) == 6
    assert (tmp_path / "shards" / "train-00000-of-00004.array_record").stat().st_mtime_ns == kept


def test_keys_and_kinds_of_file_names(records, tmp_path):
    other = tmp_path / "others"
    (other / "val").mkdir(parents=True)
    for name, label in (("dots-train.tfrecord-00000-of-00001", 4), ("test_03.tfrecord", 5), ("val/part-1.tfrecords", 6)):
        (other / name).write_bytes(framed(example(encoded(label, tmp_path), label, "jpeg", "y")))
    (other / "notes.txt").write_text("none of them")
    (other / ".cache").mkdir()
    (other / ".cache" / "train.tfrecord").write_text("none of them")
    sources = open_tfrecords(str(other), (), Layout(image_key="jpeg", label_key="y"))
    assert {split: source[0]["label"] for split, source in sources.items()} == {"train": 0, "test": 1, "val": 2}
    assert sources["val"].class_names == ("4", "5", "6")
    with pytest.raises(ConfigError, match='record at byte 0: the record has no integer "image/class/label"'):
        open_tfrecords(str(other), ("train",), LAYOUT)
    with pytest.raises(ConfigError, match='record at byte 0: the record has no bytes "png"'):
        open_tfrecords(str(other), (), Layout(image_key="png", label_key="y"))


def test_files_named_tfrec_are_read(tmp_path):
    for name, label in (("train-07.tfrec", 4), ("test.tfrec", 5), ("val.tfrec-00000-of-00001", 6), ("extra/00-224x224-462.tfrec", 7)):
        (tmp_path / "records" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "records" / name).write_bytes(framed(example(encoded(label, tmp_path), label)))
    sources = open_tfrecords(str(tmp_path / "records"), (), LAYOUT)
    assert {split: source[0]["label"] for split, source in sources.items()} == {"train": 0, "test": 1, "val": 2, "extra": 3}
    (tmp_path / "records" / "00-224x224-462.tfrec").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"the split of .*/00-224x224-462.tfrec cannot be told from its name; put the files of each split"
    ):
        open_tfrecords(str(tmp_path / "records"), (), LAYOUT)


def test_a_series_of_any_length_is_found_incomplete_at_once(records):
    (records / "train-00000-of-99999999999").write_bytes(b"")
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="has 1 of the 99999999999 files of train; number 1 is missing"):
        open_tfrecords(str(records), (), LAYOUT)
    assert time.monotonic() - begun < 1


def test_links_that_lead_out_of_the_folder_are_followed_only_when_that_is_meant(records, tmp_path):
    (records / "validation-00000-of-00001").rename(tmp_path / "elsewhere")
    (records / "validation-00000-of-00001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="validation-00000-of-00001 lies outside .*follow_outside"):
        open_tfrecords(str(records), (), LAYOUT)
    assert len(open_tfrecords(str(records), (), LAYOUT, follow_outside=True)["validation"]) == 4


@pytest.mark.parametrize("label", [3_000_000, 2**31, -1])
def test_a_label_that_is_long_large_or_negative_is_refused_at_once(records, tmp_path, label):
    (records / "classes.txt").write_text("ant\nbee\ncat\n")
    number = bytes(b"\x80" * label + b"\x01") if label == 3_000_000 else varint(label % 2**64)
    features = {"image/class/label": feature(3, field(1, number)), "image/encoded": feature(1, field(1, encoded(0, tmp_path)))}
    data = field(1, b"".join(field(1, field(1, key.encode()) + field(2, value)) for key, value in features.items()))
    (records / "train-00000-of-00002").write_bytes(framed(data))
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"record at byte 0: (label -?\d+ is|the record is no tf.train.Example|its bytes)"):
        open_tfrecords(str(records), (), Layout(first_label=1))
    assert time.monotonic() - begun < 3


def test_what_is_no_folder_of_records_is_refused(records, tmp_path):
    with pytest.raises(ConfigError, match='no TFRecord files of a split "vaildation"; did you mean validation'):
        open_tfrecords(str(records), ("vaildation",), LAYOUT)
    with pytest.raises(ConfigError, match="does not exist"):
        open_tfrecords(str(tmp_path / "none"), (), LAYOUT)
    with pytest.raises(ConfigError, match="holds no TFRecord file"):
        (tmp_path / "empty").mkdir()
        open_tfrecords(str(tmp_path / "empty"), (), LAYOUT)
    for data, words in ((b"", "is empty"), (b"\x1f\x8b" + bytes(99), "is compressed"), (b"some text, no records", "no TFRecord file")):
        (records / "validation-00000-of-00001").write_bytes(data)
        with pytest.raises(ConfigError, match=rf"validation-00000-of-00001.*{words}"):
            open_tfrecords(str(records), (), LAYOUT)
    (records / "train-00000-of-00002").unlink()
    with pytest.raises(ConfigError, match="has 1 of the 2 files of train; number 0 is missing"):
        open_tfrecords(str(records), ("train",), LAYOUT)

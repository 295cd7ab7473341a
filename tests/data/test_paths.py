"""Data in a bucket: `epath` is given a file system in memory, reached by Google's code path."""

import io
import pathlib
import pickle

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tests.data.conftest import write_tree
from vitlab.config import AugmentConfig, ConfigError, DataConfig
from vitlab.data import open_source, train_batches
from vitlab.data.image_folder import open_image_folder
from vitlab.data.paths import data_path, is_remote, join
from vitlab.data.prepare import main, prepare, verify
from vitlab.data.shards import open_shards
from vitlab.data.tfds import open_tfds


class Bucket(MemoryFileSystem):
    """The files at gs://."""

    protocol = ("gs", "gcs")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Returns a function that copies a folder to gs://bucket/..."""
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    filesystem = fsspec.filesystem
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **options: Bucket() if name == "gcs" else filesystem(name, **options))
    backend.fsspec_backend._get_filesystem.cache_clear()

    def upload(folder: pathlib.Path, to: str) -> str:
        for file in folder.rglob("*"):
            if file.is_file():
                epath.Path(to, file.relative_to(folder).as_posix()).parent.mkdir(parents=True, exist_ok=True)
                epath.Path(to, file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
        return to

    yield upload
    backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture
def trees(tmp_path, bucket) -> tuple[str, str]:
    """Returns equal trees on the disk and in the bucket.

    They have two splits, one file deep in a class, and files that are no images.
    """
    root = tmp_path / "here"
    write_tree(root / "train", ("ant", "bee"), 3)
    write_tree(root / "val", ("bee",), 2)
    (root / "train" / "ant" / "deep" / "er").mkdir(parents=True)
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "deep" / "er" / "0.PNG")
    for name in ("notes.txt", ".hidden.png", ".thumbs/0.png"):
        (root / "train" / "ant" / name).parent.mkdir(exist_ok=True)
        (root / "train" / "ant" / name).write_bytes(b"no image")
    return str(root), bucket(root, "gs://bucket/images")


def test_a_folder_in_a_bucket_gives_what_it_gives_here(trees):
    for split in ("train", "test", "train[:50%]"):
        here, there = (open_image_folder(root, split) for root in trees)
        assert there.files == here.files and there.class_names == here.class_names and there.channels == here.channels
        assert there.fingerprint == here.fingerprint
        assert [there[i] for i in range(len(there))] == [here[i] for i in range(len(here))]
        assert there.name_of(0) == f"{trees[1]}/{'val' if split == 'test' else 'train'}/{here.files[0]}"
    assert pickle.loads(pickle.dumps(there))[1] == here[1]


def test_training_reads_from_a_bucket(trees):
    options = {"augment": AugmentConfig(), "image_size": 8, "channels": 3, "batch_size": 4, "seed": 0}
    here, there = (DataConfig(source="image_folder", data_dir=root, num_threads=2) for root in trees)
    with (
        train_batches(open_source(here, train=True), data=here, **options) as expected,
        train_batches(open_source(there, train=True), data=there, **options) as got,
    ):
        np.testing.assert_array_equal(next(got)["image"], next(expected)["image"])


def test_a_folder_that_lists_itself_as_a_file_is_no_endless_tree(trees, monkeypatch):
    listdir = type(backend.fsspec_backend).listdir
    monkeypatch.setattr(type(backend.fsspec_backend), "listdir", lambda self, path: ["", *listdir(self, path)])
    assert open_image_folder(trees[1], "train").files == open_image_folder(trees[0], "train").files


def test_a_class_list_in_a_bucket_fixes_the_order(trees):
    (epath.Path(trees[1]) / "classes.txt").write_text("bee\nant\n")
    assert open_image_folder(trees[1], "train").class_names == ("bee", "ant")


def test_a_csv_may_lie_in_a_bucket_or_name_files_there(trees, tmp_path):
    lines = "bee/0.png,bee\nant/1.png,ant\n"
    (epath.Path(trees[1]) / "train" / "images.csv").write_bytes(("\ufeffpath,label\n" + lines).encode())
    (tmp_path / "images.csv").write_text("".join(f"{trees[1]}/train/{line}\n" for line in lines.splitlines()))
    sources = [open_source(DataConfig(source="image_folder", data_dir=str(path)), train=True)
               for path in (f"{trees[1]}/train/images.csv", tmp_path / "images.csv")]  # fmt: skip
    for source in sources:
        assert [source[i]["label"] for i in range(2)] == [1, 0] and source.class_names == ("ant", "bee")
        assert Image.open(io.BytesIO(source[0]["image"])).size == (26, 20)
        assert source.name_of(0) == f"{trees[1]}/train/bee/0.png"
    (tmp_path / "images.csv").write_text(f"{trees[1]}/train/bee/9.png,bee\n{trees[1]}/train/ant/1.png,ant\n")
    with pytest.raises(ConfigError, match=r'line 1: "gs://bucket/images/train/bee/9.png" cannot be read'):
        open_source(DataConfig(source="image_folder", data_dir=str(tmp_path / "images.csv")), train=True)


def test_shards_are_prepared_from_a_bucket_and_into_one(trees, tmp_path):
    prepare(trees[0], tmp_path / "shards", shard_size=4)
    prepare(trees[1], tmp_path / "from", shard_size=4)
    prepare(trees[0], "gs://bucket/shards", shard_size=4)
    for other in (epath.Path(tmp_path / "from"), epath.Path("gs://bucket/shards")):
        assert {path.name: path.read_bytes() for path in other.iterdir()} == {
            path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()
        }
    verify("gs://bucket/shards")


def test_a_preparation_into_a_bucket_goes_on_and_is_checked(trees, capsys):
    prepare(trees[0], "gs://bucket/shards", shard_size=4)
    (shard,) = (path for path in epath.Path("gs://bucket/shards").iterdir() if path.name.startswith("val-"))
    data = shard.read_bytes()
    for damage in (shard.unlink, lambda: shard.write_bytes(b"cut off")):
        damage()
        prepare(trees[0], "gs://bucket/shards", shard_size=4)
        assert shard.read_bytes() == data and "6 of them there already" in capsys.readouterr().out.splitlines()[-1]
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(ConfigError, match="gs://bucket/shards/val-00000-of-00001.array_record has another SHA-256"):
        main(["--verify", "gs://bucket/shards"])


def test_what_only_a_local_disk_can_give_is_refused_with_the_remedy(trees):
    prepare(trees[0], "gs://bucket/shards")
    for call in (
        lambda: open_shards("gs://bucket/shards", "train"),
        lambda: open_tfds("cifar10", "gs://bucket/tfds", "train"),
        lambda: main(["gs://bucket/records", "gs://bucket/other", "--tfrecord"]),
    ):
        with pytest.raises(ConfigError, match=r"of gs://bucket/\w+ can only be read from a local disk: copy the folder .* or mount"):
            call()


def test_a_bucket_without_its_package_says_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    backend.fsspec_backend._get_filesystem.cache_clear()
    with pytest.raises(ConfigError, match=r'gs://bucket/images cannot be opened: Please install gcsfs; pip install "vitlab\[cloud\]"'):
        open_image_folder("gs://bucket/images", "train")


def test_paths_here_and_there_are_told_apart(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(data_path("~/images")) == "/home/me/images" and not is_remote(data_path("~/images"))
    assert [join("/a", name) for name in ("b/c", "/b", "gs://b/c")] == ["/a/b/c", "/b", "gs://b/c"]
    assert join("gs://a", "b/c") == "gs://a/b/c" and is_remote("s3://a")

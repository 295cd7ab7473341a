"""Batches are functions of (seed, step), whichever thread or process computes them."""

import dataclasses
import traceback

import grain
import numpy as np
import pytest

from vitlab.config import AugmentConfig, DataConfig
from vitlab.data import open_source
from vitlab.data.arrays import ArraySource
from vitlab.data.bad_images import BadImagesError
from vitlab.data.loader import eval_batches, train_batches

PAD = AugmentConfig(crop="pad", pad=2)
RANDOM = AugmentConfig(crop="random_resized")


def folder(tree, **changes) -> DataConfig:
    return dataclasses.replace(DataConfig(source="image_folder", data_dir=str(tree), eval_split="train", num_threads=1), **changes)


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def train(config, augment=RANDOM, **changes):
    options = {"image_size": 12, "channels": 3, "batch_size": 4, "seed": 3} | changes
    return train_batches(open_source(config, train=True), augment=augment, data=config, **options)


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_any_number_of_threads_and_workers_gives_the_same_batches(tree):
    expected = take(train(folder(tree)), 6)
    same(take(train(folder(tree, num_threads=3)), 6), expected)
    same(take(train(folder(tree, num_workers=2)), 6), expected)


def test_processes_share_the_rows_of_the_global_batch(tree):
    whole = take(train(folder(tree)), 4)
    parts = [take(train(folder(tree), process_index=i, process_count=2), 4) for i in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    same(joined, whole)


@pytest.mark.parametrize("augment", [RANDOM, PAD])
def test_starting_at_a_step_gives_what_the_whole_run_would_have(tree, augment):
    whole = take(train(folder(tree), augment), 8)
    same(take(train(folder(tree), augment, start_step=5), 3), whole[5:])


def test_another_seed_gives_other_batches(tree):
    one, other = (take(train(folder(tree), seed=seed), 1)[0] for seed in (3, 4))
    assert not np.array_equal(one["image"], other["image"])


@pytest.mark.parametrize("augment", [RANDOM, PAD])
def test_augmentation_differs_from_epoch_to_epoch(tree, augment):
    batches = take(train(folder(tree), augment, batch_size=12), 2)
    assert not np.array_equal(*(np.sort(batch["image"].sum((1, 2, 3), dtype=np.int64)) for batch in batches))


def test_an_epoch_has_every_image_once():
    images = np.arange(10, dtype=np.uint8).repeat(16).reshape(10, 4, 4, 1)
    source = ArraySource(images=images, labels=np.arange(10, dtype=np.int32), class_names=tuple("abcdefghij"))
    config = AugmentConfig(crop="center", flip=False)
    batches = take(train_batches(source, augment=config, data=DataConfig(), image_size=4, channels=1, batch_size=4, seed=0), 5)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10))
    assert list(labels[:10]) != list(labels[10:])
    for batch in batches:  # image and label belong together
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_evaluation_sees_every_image_once_and_pads_the_last_batch(tree):
    config = folder(tree)
    source = open_source(config, train=False)
    batches = list(eval_batches(source, data=config, image_size=12, channels=3, batch_size=5))
    assert [batch["image"].shape[0] for batch in batches] == [5, 5, 5]
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.sum() == len(source) == 12 and not mask[12:].any()
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[:12], source.labels)


def test_evaluation_over_processes_is_the_same_images(tree):
    config = folder(tree)
    source = open_source(config, train=False)
    options = {"data": config, "image_size": 12, "channels": 3, "batch_size": 8}
    whole = np.concatenate([batch["image"][batch["mask"]] for batch in eval_batches(source, **options)])
    parts = [list(eval_batches(source, process_index=i, process_count=2, **options)) for i in range(2)]
    assert len(parts[0]) == len(parts[1])  # with fewer batches on one process, a collective of the last step would hang
    joined = np.concatenate([part[step]["image"][part[step]["mask"]] for step in range(2) for part in parts])
    np.testing.assert_array_equal(joined, whole)


def test_a_bad_image_is_replaced_by_its_neighbour_counted_and_named_once(tree, caplog):
    (tree / "ant" / "2.png").write_bytes(b"no image")
    config = folder(tree, max_bad_fraction=0.1)
    first = take(train(config, AugmentConfig(crop="center", flip=False), batch_size=12), 3)
    assert caplog.text.count("2.png cannot be decoded (not an image)") == 1
    same(take(train(config, AugmentConfig(crop="center", flip=False), batch_size=12), 3), first)
    assert all(list(batch["label"]).count(0) == 6 for batch in first)


def test_too_many_bad_images_stop_the_run(tree):
    for i in range(3):
        (tree / "ant" / f"{i}.png").write_bytes(b"")
    with pytest.raises(BadImagesError, match=r"2 of 12 images cannot be decoded.*max_bad_fraction allows \(1\).*\(empty\)"):
        take(train(folder(tree, max_bad_fraction=0.1), batch_size=12), 2)


def test_grey_images_repeat_into_rgb_on_both_paths():
    source = open_source(DataConfig(train_split="train[:20]"), train=True)
    for augment in (PAD, RANDOM):
        batch = take(train_batches(source, augment=augment, data=DataConfig(), image_size=28, channels=3, batch_size=5, seed=0), 1)[0]
        assert batch["image"].shape == (5, 28, 28, 3)
        np.testing.assert_array_equal(batch["image"][..., 0], batch["image"][..., 2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 3, "process_count": 2}, "multiple of process_count"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"channels": 4}, "channels=4"),
    ],
)
def test_impossible_layouts_are_refused(tree, options, words):
    with pytest.raises(ValueError, match=words):
        train(folder(tree), **options)


class BrokenSource:
    """A source with a fault of its own, not an image's."""

    channels, class_names, fingerprint = 3, ("a",), "none"

    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise ZeroDivisionError("a fault in the source")

    def name_of(self, index):
        return str(index)


def test_what_a_worker_raises_is_raised_here_with_the_workers_traceback():
    data, options = DataConfig(num_workers=1, num_threads=1), {"image_size": 12, "channels": 3, "batch_size": 4, "seed": 3}
    batches = train_batches(BrokenSource(), augment=RANDOM, data=data, **options)
    with batches, pytest.raises(ZeroDivisionError, match="a fault in the source") as caught:
        next(batches)
    assert "in __getitem__" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_one_thread_is_one_thread(monkeypatch, tree, num_threads):
    read_ahead, options = [], grain.ReadOptions
    monkeypatch.setattr(grain, "ReadOptions", lambda **given: read_ahead.append(given["num_threads"]) or options(**given))
    take(train(folder(tree, num_threads=num_threads)), 1)
    take(
        eval_batches(
            open_source(folder(tree), train=False), data=folder(tree, num_threads=num_threads), image_size=12, channels=3, batch_size=4
        ),
        1,
    )
    assert read_ahead == [num_threads, num_threads]  # for training, then for evaluation

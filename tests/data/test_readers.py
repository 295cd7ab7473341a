"""Annotations that users bring: pairs of files, COCO's JSON, tables."""

import json
import pickle
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image as Picture

from tests.data.conftest import smooth
from vitlab.config import AugmentConfig, ConfigError, DataConfig
from vitlab.data import open_source, prepare
from vitlab.data.bad_images import reason
from vitlab.data.coco import _filled
from vitlab.data.fields import Boxes, Image, IndexMap, Labels, Value, ValueMap, decode_example, fields_of
from vitlab.data.loader import train_batches
from vitlab.data.rle import decode_rle, unpack_counts

RNG = np.random.default_rng
ADE = ("image=images/{split}/{stem}.jpg", "segmentation=annotations/{split}/{stem}.png classes=wall,sky first=1")


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(array).save(path, **options)


def config(source, root, *files, **changes) -> DataConfig:
    return DataConfig(source=source, data_dir=str(root), files=files, num_threads=1, **changes)


def decoded(source, index):
    return decode_example(source[index], fields_of(source))


@pytest.fixture
def ade(tmp_path):
    """Six images of different sizes, whose map has 0 for void and 1, 2 for the classes."""
    tmp_path = tmp_path / "ade"
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            size = RNG(i).integers(20, 40, 2)
            save(tmp_path / "images" / split / f"{i}.jpg", smooth(RNG(i), *size))
            save(tmp_path / "annotations" / split / f"{i}.png", RNG(i).integers(0, 3, size).astype(np.uint8))
    return tmp_path


def test_pairs_of_equal_stem_are_examples(ade):
    source = open_source(config("pairs", ade, *ADE), train=True, fields=("image", "segmentation"))
    assert len(source) == 4 and source.class_names == ("wall", "sky") and source.channels == 3
    for i in range(4):
        example = decoded(source, i)
        index = np.asarray(Picture.open(ade / "annotations" / "train" / f"{i}.png")).astype(int)
        np.testing.assert_array_equal(example["segmentation"], np.where(index == 0, 255, index - 1))
        assert example["image"].shape[:2] == index.shape
    evaluation = open_source(config("pairs", ade, *ADE), train=False, fields=("image", "segmentation"))
    assert len(evaluation) == 2 and evaluation.name_of(0).endswith("images/val/0.jpg")  # "test" takes "val"
    batches = train_batches(source, augment=AugmentConfig(), data=config("pairs", ade), image_size=16, channels=3, batch_size=4, seed=0)
    with batches:
        batch = next(batches)
    assert batch["segmentation"].shape == (4, 16, 16) and set(np.unique(batch["segmentation"])) == {0, 1, 255}


def test_slices_of_pairs_are_disjoint(ade):
    parts = [
        open_source(config("pairs", ade, *ADE, train_split=split), train=True, fields=("image",)).files
        for split in ("train[:50%]", "train[50%:]")
    ]
    assert len(parts[0]) == len(parts[1]) == 2 and not set(parts[0]) & set(parts[1])


def test_stems_may_have_folders_and_a_list(tmp_path, caplog):
    for stem in ("a/a_1", "a/a_2", "b/b_1"):
        save(tmp_path / "left" / "train" / f"{stem}_left.png", smooth(RNG(0), 8, 8))
        if stem != "b/b_1":
            save(tmp_path / "gt" / "train" / f"{stem}_ids.png", np.zeros((8, 8), np.uint8))
    files = ("image=left/{split}/{stem}_left.*", "segmentation=gt/{split}/{stem}_ids.png classes=road,car")
    source = open_source(config("pairs", tmp_path, *files), train=True, fields=("image", "segmentation"))
    assert source.files == ("left/train/a/a_1_left.png", "left/train/a/a_2_left.png")
    assert "1 of 3 images of train have no segmentation and are left out: b/b_1" in caplog.text
    (tmp_path / "train.txt").write_text("a/a_2\n\na/a_1 1\n")
    listed = open_source(config("pairs", tmp_path, *files, "list={split}.txt"), train=True, fields=("image",))
    assert listed.files == ("left/train/a/a_2_left.png", "left/train/a/a_1_left.png")
    whole = ("image=left/train/{stem}_left.png",)  # as Pascal VOC, whose folders know nothing of splits
    (tmp_path / "val.txt").write_text("b/b_1\n")
    val = config("pairs", tmp_path, *whole, "list={split}.txt", eval_split="val")
    assert open_source(val, train=False, fields=("image",)).files == ("left/train/b/b_1_left.png",)
    with pytest.raises(ConfigError, match=r'has no \{split\}, so the only split is "train"'):
        open_source(config("pairs", tmp_path, *whole, eval_split="val"), train=False, fields=("image",))


def test_depth_disparity_and_targets_are_read_in_their_formats(tmp_path):
    depth, disparity = RNG(0).uniform(1, 9, (8, 10)).astype(np.float32), RNG(1).uniform(1, 9, (8, 10)).astype(np.float32)
    save(tmp_path / "x" / "0.png", smooth(RNG(0), 8, 10))
    save(tmp_path / "y" / "0.png", smooth(RNG(0), 24, 30))
    (tmp_path / "d").mkdir()
    cv2.imwrite(str(tmp_path / "d" / "0.png"), (depth * 1000).round().astype(np.uint16))
    with open(tmp_path / "d" / "0.pfm", "wb") as file:
        file.write(b"Pf\n10 8\n1.0\n" + disparity[::-1].astype(">f4").tobytes())
    files = ("image=x/{stem}.png", "target=y/{stem}.png", "depth=d/{stem}.png unit=1000", "disparity=d/{stem}.pfm")
    source = open_source(config("pairs", tmp_path, *files), train=True, fields=("image", "target", "depth", "disparity"))
    example = decoded(source, 0)
    np.testing.assert_allclose(example["depth"], depth, atol=0.5 / 1000 + 1e-6)  # half a count
    np.testing.assert_array_equal(example["disparity"], disparity)
    assert example["target"].shape == (24, 30, 3)
    target, depth_kind = source.fields["target"], source.fields["depth"]
    assert isinstance(target, Image) and target.scale == 3 and isinstance(depth_kind, ValueMap) and depth_kind.unit == 1000


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "needs a pattern for the images"),
        (("image=images/{split}/x.jpg",), r"must have \{stem\} once"),
        (("image=pictures/{split}/{stem}.jpg",), "has no folder pictures/train"),
        (("image=images/{split}/{stem}.png",), 'matches no image of split "train"'),
        (("image images",), '"image images" must be FIELD=PLACE'),
        ((ADE[0], ADE[0]), 'names "image" twice'),
        ((ADE[0], "mask=annotations/{split}/{stem}.png"), "no field of files is called so; it must be one of|mask"),
        ((ADE[0], "segmentation=annotations/{split}/{stem}.png"), "needs the names of its classes"),
        ((ADE[0], "segmentation=annotations/{split}/{stem}.png classes=a,b void=300"), "void=300 must be in 0..255"),
        ((ADE[0], "depth=annotations/{split}/{stem}.png void=1"), "has no option void; it has unit"),
        ((ADE[0], "segmentation=images/{split}/{stem}.png classes=a,b"), "no stem of the images has a file of segmentation"),
    ],
)
def test_wrong_patterns_are_refused_in_one_line(ade, files, words):
    names = tuple(dict.fromkeys(("image", *(text.split("=")[0] for text in files if "=" in text))))
    with pytest.raises(ConfigError, match=words):
        open_source(config("pairs", ade, *files), train=True, fields=names)


def test_a_map_of_another_size_or_class_is_a_bad_image_with_its_reason(ade):
    save(ade / "annotations" / "train" / "0.png", np.zeros((3, 4), np.uint8))
    save(ade / "annotations" / "train" / "1.png", np.full(Picture.open(ade / "images" / "train" / "1.jpg").size[::-1], 7, np.uint8))
    data = config("pairs", ade, *ADE, max_bad_fraction=0.6)
    source = open_source(data, train=True, fields=("image", "segmentation"))
    assert "segmentation: another size: 3 x 4 pixels beside an image of" in reason(source, 0, source.fields)
    assert "segmentation: a class outside: 6 is not in 0..1" in reason(source, 1, source.fields)
    batches = train_batches(source, augment=AugmentConfig(), data=data, image_size=16, channels=3, batch_size=4, seed=0)
    with batches:
        next(batches)
    assert sorted(batches.bad.reasons) == [0, 1] and set(batches.bad.counts) == {"segmentation"}


# Run lengths of the mask below, and their text: made with faster_coco_eval's mask API.
MASK = np.zeros((7, 9), bool)
MASK[2:6, 3:8], MASK[0, 0] = True, True


def test_run_lengths_are_those_of_the_mask_api():
    from faster_coco_eval.core import mask as api

    for mask in (MASK, RNG(0).random((40, 30)) < 0.2, np.ones((5, 4), bool), np.zeros((5, 4), bool)):
        text = api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        np.testing.assert_array_equal(decode_rle(text, mask.shape), mask)
        np.testing.assert_array_equal(decode_rle(unpack_counts(text), mask.shape), mask)


@pytest.fixture
def coco(tmp_path):
    """Four images: two objects, a crowd, none, and one whose box lies outside."""
    tmp_path = tmp_path / "coco"
    for i in range(4):
        save(tmp_path / "train2017" / f"{i}.jpg", smooth(RNG(i), 20, 30))
    rows = [
        (1, 0, 18, [2, 3, 10, 8], 0, [[2, 3, 12, 3, 12, 11, 2, 11]]),
        (2, 0, 7, [5, 5, 4, 4], 0, [[5, 5, 9, 5, 9, 9, 5, 9]]),
        (3, 1, 7, [0, 0, 30, 10], 1, {"size": [20, 30], "counts": [0] + [10, 10] * 30}),
        (4, 3, 7, [40, 5, 4, 4], 0, [[5, 5, 9, 5, 9, 9, 5, 9]]),
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd, "segmentation": mask}
        for i, image, c, b, crowd, mask in rows
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (3, 1, 0, 2)],
        "annotations": annotations,
        "categories": [{"id": 18, "name": "dog"}, {"id": 7, "name": "train"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return tmp_path


COCO = ("image={split}2017", "annotations=annotations/instances_{split}2017.json")


def test_coco_gives_boxes_classes_counts_and_masks_and_keeps_images_without_objects(coco):
    names = ("image", "boxes", "labels", "count", "segmentation")
    source = open_source(config("coco", coco, *COCO, "boxes=all most=5"), train=True, fields=names)
    assert source.class_names == ("train", "dog") and len(source) == 4
    first, crowd, empty = (decoded(source, i) for i in range(3))
    np.testing.assert_allclose(first["boxes"][:2], [[2, 3, 12, 11, 1, 0, 80], [5, 5, 9, 9, 0, 0, 16]])
    assert first["boxes"].shape == (5, 7) and first["count"] == 2 and first["labels"].tolist() == [1, 1]
    expected = np.zeros((20, 30), int)
    expected[3:11, 2:12], expected[5:9, 5:9] = 2, 1  # the small one lies above
    np.testing.assert_array_equal(first["segmentation"], expected)
    assert (
        crowd["boxes"][0, 5] == 1
        and crowd["count"] == 0
        and (crowd["segmentation"][:10] == 255).all()
        and not crowd["segmentation"][10:].any()
    )
    assert (empty["boxes"] == -1).all() and empty["count"] == 0 and not empty["segmentation"].any()
    assert "a box outside of the image of 20 x 30 pixels" in reason(source, 3, source.fields)


def test_only_what_is_wanted_of_coco_is_made(coco):
    source = open_source(config("coco", coco, *COCO), train=True, fields=("image", "boxes"))
    assert set(source[0]) == {"image", "boxes"} and source.objects[0][0].mask is None
    boxes = source.fields["boxes"]
    assert isinstance(boxes, Boxes) and boxes.class_names == ("train", "dog")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("categories"), "is no file of COCO's format, which has"),
        (lambda c: c["images"][0].pop("height"), "is no file of COCO's format: KeyError 'height'"),
        (lambda c: c["images"][0].update(file_name="../../x.jpg"), "lies outside"),
    ],
)
def test_a_wrong_json_is_refused_in_one_line(coco, change, words):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        open_source(config("coco", coco, *COCO), train=True, fields=("image", "boxes"))


def test_an_empty_polygon_is_named(coco):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(content))
    source = open_source(config("coco", coco, *COCO), train=True, fields=("image", "segmentation"))
    assert "an empty polygon" in reason(source, 0, source.fields)


@pytest.fixture
def table(tmp_path):
    for i in range(4):
        save(tmp_path / "files" / f"{i}.png", smooth(RNG(i), 8, 8))
    lines = [
        "file\tmos\tdeviation\ttags\tcat\tdog\tsplit",
        "files/0.png\t3.5\t0.1\tnight|rain\t1\t0\ttrain",
        "files/1.png\t\t0.2\t\t\t1\ttrain",
        "files/2.png\t1\t0.3\train\t0\t0\ttest",
        "files/3.png\t2\t0.3\train;day\t0\t-1\ttrain",
    ]
    (tmp_path / "table.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "table.tsv"


def test_columns_are_numbers_or_labels_and_empty_cells_void(table):
    files = ("value=mos", "both=mos,deviation", "labels=tags")
    source = open_source(config("table", table, *files), train=True, fields=("image", "value", "both", "labels"))
    assert len(source) == 3 and source.class_names == ("day", "night", "rain")
    examples = [decoded(source, i) for i in range(3)]
    np.testing.assert_array_equal([example["value"] for example in examples], np.array([3.5, np.nan, 2], np.float32))
    np.testing.assert_array_equal([example["labels"] for example in examples], [[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    assert source.fields["both"] == Value(names=("mos", "deviation"))
    test = open_source(config("table", table, "labels=cat,dog", "image=file"), train=False, fields=("image", "labels"))
    assert len(test) == 1 and test.fields["labels"] == Labels(class_names=("cat", "dog"))
    train = open_source(config("table", table, "labels=cat,dog"), train=True, fields=("image", "labels"))
    np.testing.assert_array_equal([decoded(train, i)["labels"] for i in range(3)], [[1, 0], [-1, 1], [0, -1]])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("value=score",), 'has no column "score"'),
        (("value=tags",), 'line 2: "night|rain" is no number'),
        (("labels=mos,deviation",), "other numbers than 1, 0, -1"),
        (("image=tags",), 'line 2: "night|rain" cannot be read'),
    ],
)
def test_a_wrong_column_is_refused_with_its_line(table, files, words):
    with pytest.raises(ConfigError, match=words.replace("|", r"\|")):
        open_source(config("table", table, *files), train=True, fields=("image", files[0].split("=")[0]))


def test_photographs_are_whole_for_training_and_tiles_for_evaluation():
    train, test = (open_source(DataConfig(source="photographs"), train=train, fields=("image",)) for train in (True, False))
    assert len(train) == 30 and train[0]["image"].shape == (256, 256, 3)
    assert len(test) == 160 and test[0]["image"].shape == (64, 64, 3)
    batches = train_batches(
        train, augment=AugmentConfig(crop="random"), data=DataConfig(num_threads=1), image_size=64, channels=3, batch_size=4, seed=0
    )
    with batches:
        image = next(batches)["image"][0]
    wholes = np.stack([train[i]["image"] for i in range(30)])
    corners = np.concatenate([np.argwhere((w[:193, :193] == image[0, 0]).all(-1)) for whole in wholes for w in (whole, whole[:, ::-1])])
    assert len(corners) and image.std() > 0
    assert any(
        (w[y : y + 64, x : x + 64] == image).all()
        for whole in wholes
        for w in (whole, whole[:, ::-1])
        for y, x in np.argwhere((w[:193, :193] == image[0, 0]).all(-1))
    )


def test_index_maps_name_their_classes(ade):
    (ade / "classes.txt").write_text("a\nb\nc\n")
    source = open_source(
        config("pairs", ade, ADE[0], "segmentation=annotations/{split}/{stem}.png"), train=True, fields=("image", "segmentation")
    )
    assert source.fields["segmentation"] == IndexMap(class_names=("a", "b", "c"))


def test_shards_of_fields_give_what_their_source_gives(ade, coco, table, tmp_path):
    cases = {
        "pairs": (ade, ADE, ("image", "segmentation"), "train,val"),
        "coco": (coco, COCO, ("image", "boxes", "labels", "count"), "train"),
        "table": (table, ("value=mos", "labels=cat,dog"), ("image", "value", "labels"), "train"),
    }
    for kind, (root, files, names, splits) in cases.items():
        if kind == "coco":
            drop_outside(root)
        folder = tmp_path / "shards" / kind
        prepare.main([str(root), str(folder), f"--source={kind}", f"--split={splits}", *(f"--file={file}" for file in files)])
        source = open_source(config(kind, root, *files), train=True, fields=names)
        shards = open_source(DataConfig(source="shards", data_dir=str(folder)), train=True, fields=names)
        assert len(shards) == len(source) and shards.class_names == source.class_names and fields_of(shards).keys() == set(names)
        by_name = {source.name_of(i).rsplit("/", 1)[1]: decoded(source, i) for i in range(len(source))}
        for i, example in enumerate(pickle.loads(pickle.dumps(shards)).__getitems__(range(len(shards)))):
            example, expected = decode_example(example, fields_of(shards)), by_name[shards.name_of(i).rsplit("/", 1)[1]]
            assert example.keys() == expected.keys()
            for name in names:
                np.testing.assert_array_equal(example[name], expected[name])


def drop_outside(root):
    """Leaves the object outside of its image out, which `prepare` refuses."""
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    with pytest.raises(ConfigError, match="3.jpg cannot be read: a box outside of the image"):
        prepare.main([str(root), str(root / "refused"), "--source=coco", *(f"--file={file}" for file in COCO)])
    content["annotations"].pop()
    path.write_text(json.dumps(content))


@pytest.fixture
def tars(ade):
    """The pairs of `ade` in two tar files, with labels."""
    (ade / "classes.txt").write_text("wall\nsky\n")
    for number, stems in enumerate((("0", "1"), ("2", "3"))):
        with tarfile.open(ade / f"train-{number}.tar", "w") as tar:
            for stem in stems:
                tar.add(ade / "images" / "train" / f"{stem}.jpg", f"a/{stem}.jpg")
                tar.add(ade / "annotations" / "train" / f"{stem}.png", f"a/{stem}.seg.png")
                (ade / "label").write_text(stem if stem == "3" else "1\n")
                tar.add(ade / "label", f"a/{stem}.cls")
            tar.add(ade / "label", "a/9.cls")  # lacks its image
    return ade


def test_members_of_one_key_are_an_example(tars):
    files = ("tars={split}-*.tar", "image=png|jpg", "segmentation=seg.png first=1", "label=cls")
    source = open_source(config("tars", tars, *files), train=True, fields=("image", "segmentation", "label"))
    pairs = open_source(config("pairs", tars, *ADE), train=True, fields=("image", "segmentation"))
    assert source.keys == ("a/0", "a/1", "a/2", "a/3") and source.class_names == ("wall", "sky") and source.channels == 3
    source = pickle.loads(pickle.dumps(source))
    for i in range(3):
        example = decoded(source, i)
        assert example["label"] == 1
        for name, value in decoded(pairs, i).items():
            np.testing.assert_array_equal(example[name], value)
    assert "label b'3' is not in 0..1" in reason(source, 3, source.fields)
    with pytest.raises(ConfigError, match="matches no file in"):
        open_source(config("tars", tars, *files), train=False, fields=("image", "label"))
    with pytest.raises(ConfigError, match="no member of every field"):
        open_source(config("tars", tars, "tars={split}-*.tar", "image=webp"), train=True, fields=("image",))
    (tars / "train-0.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ConfigError, match=r"train-0.tar is damaged, or compressed"):
        open_source(config("tars", tars, *files), train=True, fields=("image", "label"))


def test_shards_of_fields_lack_what_they_lack(ade, tmp_path):
    prepare.main([str(ade), str(tmp_path / "s"), "--source=pairs", *(f"--file={file}" for file in ADE)])
    data = DataConfig(source="shards", data_dir=str(tmp_path / "s"))
    with pytest.raises(ConfigError, match='has no field "label", which the task needs; it has image, segmentation'):
        open_source(data, train=True)
    with pytest.raises(ConfigError, match="neither with --tfrecord nor with --short_side"):
        prepare.main([str(ade), str(tmp_path / "t"), "--source=pairs", "--short_side=8", *(f"--file={file}" for file in ADE)])


def test_a_polygon_holds_the_pixels_whose_centres_lie_in_it():
    for seed in range(20):
        points = RNG(seed).uniform((-3, -3), (23, 17), (5, 2))
        contour = points.astype(np.float32)[:, None]
        expected = [[cv2.pointPolygonTest(contour, (x + 0.5, y + 0.5), False) > 0 for x in range(20)] for y in range(14)]
        np.testing.assert_array_equal(_filled(contour[:, 0].astype(np.float64), (14, 20)), expected)

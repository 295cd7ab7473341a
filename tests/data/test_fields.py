"""Kinds of fields: what they decode, refuse, move, draw and write."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image as Picture

from vitlab.config import AugmentConfig, ConfigError, DataConfig
from vitlab.data import open_source
from vitlab.data.augment import FITS, augment, evaluation_warp, flipped_left_to_right, padded
from vitlab.data.batches import Layout, Threads, TrainBatch
from vitlab.data.fields import Boxes, Image, IndexMap, Kind, Label, Labels, Value, ValueMap
from vitlab.data.headers import DecodeError
from vitlab.data.loader import eval_batches, train_batches
from vitlab.data.order import ShuffledOrder
from vitlab.data.policies import make_policy
from vitlab.data.scenes import FIELDS
from vitlab.data.warp import Warp

RNG = np.random.default_rng
KINDS = {
    **FIELDS,
    "label": Label(class_names=("a", "b")),
    "grades": Value(names=("sharp", "bright")),
}
SCENES = DataConfig(source="scenes", num_threads=1)


def png(array, mode=None) -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


NPY = npy(np.ones((5, 6), np.float32))


def scenes(*names, train=True):
    return open_source(SCENES, train=train, fields=names)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_empty_field_is_one_row_per_image_and_has_no_content(name):
    kind = KINDS[name]
    empty = kind.empty(2, (6, 5))
    assert isinstance(kind, Kind) and len(empty) == 2
    void = getattr(kind, "void", 0)
    if not isinstance(kind, Label):  # zeros, as evaluation's mask says which rows are none
        assert (np.isnan(empty) if void != void else empty == void).all()


@pytest.mark.parametrize("crop", ["random_resized", "random", "scale_jitter", "pad", "center", "stretch", "letterbox"])
@pytest.mark.parametrize("policy", [None, "rand-m9-n3"])
def test_maps_and_boxes_move_with_the_image(crop, policy):
    """An image that is bright where the map has class 1, and nowhere else, still is after it has
    moved.
    """
    config = AugmentConfig(crop=crop, policy=policy, interpolation="bilinear", crop_scale=(0.3, 1.0), jitter_scale=(0.7, 1.5))
    agreement, overlaps = [], []
    for seed in range(30):
        index = np.zeros((60, 80), np.uint8)
        top, left = RNG(seed).integers(5, 25, 2)
        index[top : top + 20, left : left + 30] = 1
        image = np.repeat(index[..., None] * np.uint8(255), 3, -1)
        chosen = None if policy is None else make_moving_policy()
        pixels, warp = augment(image, RNG(seed), config, (40, 48), chosen)
        if seed % 2:
            warp, pixels = warp.then(flipped_left_to_right((40, 48))), pixels[:, ::-1]
        moved = IndexMap().warp(index, warp)
        assert moved.shape == pixels.shape[:2] == warp.size
        known = moved != 255
        agreement.append(((pixels[..., 0] > 127) == (moved == 1))[known].mean())
        box = Boxes(count=2).warp(Boxes(count=2).decode([[left, top, left + 30, top + 20]]), warp)[0]
        y, x = np.nonzero(moved == 1)
        if box[4] == 0 and len(x):
            extent = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            overlaps.append(np.abs(box[:4] - extent).max() if policy is None else (np.sign([1, 1, -1, -1]) * (box[:4] - extent)).max())
    assert min(agreement) > 0.97  # the rim of half a pixel about a rectangle of 600 in 4800
    assert len(overlaps) > 15 and max(overlaps) <= 1.01  # pixels; a rotated box holds the object and more


def make_moving_policy():
    """RandAugment of its five moving operators only."""
    policy = make_policy("rand-m9-n3")

    def only_moving(image, rng, interpolation, moves):
        settings = policy.keywords["settings"]
        for name in ("Rotate", "ShearX", "TranslateYRel"):
            image = settings.apply(name, image, rng, interpolation, moves)
        return image

    return only_moving


@pytest.mark.parametrize("fit", FITS)
def test_the_inverse_of_evaluations_warp_brings_maps_back(fit):
    index = np.zeros((50, 90), np.uint8)
    index[10:40, 30:60] = 3
    warp = evaluation_warp((50, 90), (64, 64), "bilinear", 1.0, fit)
    back = IndexMap().warp(IndexMap().warp(index, warp), warp.inverse)
    assert back.shape == index.shape
    known = back != 255
    assert (back == index)[known].mean() > 0.97 and known.mean() > (0.5 if fit == "crop" else 0.97)


def test_padding_is_void_in_maps_and_black_in_second_images():
    warp = Warp((8, 8)).then(padded((8, 8), (0, 4), 2))
    assert (IndexMap().warp(np.ones((8, 8), np.uint8), warp)[:2] == 255).all()
    assert np.isnan(ValueMap().warp(np.ones((8, 8), np.float32), warp)[:, 6:]).all()
    assert (Image().warp(np.full((8, 8, 3), 9, np.uint8), warp)[:2] == 0).all()


def test_values_follow_the_size_of_the_picture():
    warp = evaluation_warp((20, 40), (40, 20), "bilinear", 1.0, "stretch")
    assert (ValueMap(scaling="width").warp(np.full((20, 40), 6, np.float32), warp) == 3).all()
    density = ValueMap(scaling="area").warp(np.full((20, 40), 6, np.float32), warp)
    np.testing.assert_allclose(density.sum(), 6 * 20 * 40)


def test_a_target_of_more_pixels_is_cropped_at_the_same_place():
    small = RNG(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    large = small.repeat(2, 0).repeat(2, 1)
    config = AugmentConfig(crop="random")
    for seed in range(5):
        pixels, warp = augment(small, RNG(seed), config, (16, 12), None)
        np.testing.assert_array_equal(Image(scale=2).warp(large, warp), pixels.repeat(2, 0).repeat(2, 1))


def test_boxes_that_are_cut_off_are_dropped_and_lose_their_area():
    kind = Boxes(count=4)
    rows = kind.decode([[0, 0, 10, 10, 2, 0], [12, 12, 20, 20, 1, 1], [9, 9, 19, 19, 0, 0]], (20, 20))
    warp = evaluation_warp((20, 20), (10, 10), "bilinear", 0.5)  # the middle, 5 to 15
    moved = kind.warp(rows, warp)
    np.testing.assert_allclose(moved[:, 4], [2, 1, 0, -1])
    np.testing.assert_allclose(moved[0], [0, 0, 5, 5, 2, 0, 25])
    np.testing.assert_allclose(moved[1, :6], [7, 7, 10, 10, 1, 1])
    far = kind.warp(kind.decode([[0, 0, 5.2, 5.2, 2]], (20, 20)), warp)
    assert (far == -1).all()


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (IndexMap(), png(np.zeros((4, 6), np.uint8)), "another size: 4 x 6 pixels beside an image of 5 x 6"),
        (IndexMap(class_names=("a", "b")), np.full((5, 6), 2, np.uint8), r"a class outside: 2 is not in 0..1 and not 255"),
        (IndexMap(), png(np.zeros((5, 6, 3), np.uint8)), "an image of mode RGB; an index map is grey or has a palette"),
        (IndexMap(), b"no image at all", "not an image"),
        (IndexMap(), np.full((5, 6), 300), r"an index outside: 300 to 300 is not in 0..255"),
        (ValueMap(), NPY[:-3], "a damaged .npy file"),
        (ValueMap(), NPY.replace(b"(5, 6)", b"(9**9"), "a damaged .npy file"),
        (IndexMap(), NPY.replace(b"(5, 6), }   ", b"(500, 6), } "), "a damaged .npy file"),
        (Image(), np.zeros((5, 6, 3), np.float32), "an image of float32; it must be uint8"),
        (ValueMap(), b"Pf\n6 5\n-1.0\n" + bytes(7), "a truncated PFM"),
        (ValueMap(), np.zeros((5, 6, 2), np.float32), "a value map is numbers"),
        (Boxes(count=1), [[0, 0, 1, 1], [0, 0, 2, 2]], "too many boxes: 2, more than 1"),
        (Boxes(), [[3, 0, 3, 2]], "an empty box"),
        (Boxes(), [[6, 0, 8, 2]], "a box outside of the image of 5 x 6 pixels"),
        (Boxes(class_names=("a",)), [[0, 0, 2, 2, 1]], r"boxes have labels in 0..0"),
        (Boxes(), [[0, 0, float("nan"), 2]], "an empty box"),
        (Labels(class_names=("a", "b")), [1, 2], "each 1, 0 or -1"),
        (Value(), [1.0, 2.0], "values of shape"),
    ],
)
def test_a_wrong_annotation_is_refused_with_its_reason(kind, value, words):
    with pytest.raises(DecodeError, match=words):
        kind.decode(value, (5, 6))


def test_palette_indices_are_classes_and_can_be_renumbered(tmp_path):
    index = RNG(0).integers(0, 5, (5, 6)).astype(np.uint8)
    IndexMap().write(tmp_path / "a.png", index)
    data = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(IndexMap().decode(data, (5, 6)), index)
    assert Picture.open(tmp_path / "a.png").mode == "P"
    mapped = IndexMap(label_map=(255, 0, 1, 2, 3)).decode(data)  # ADE20K's 0 is void
    np.testing.assert_array_equal(mapped, np.where(index == 0, 255, index - 1))


@pytest.mark.parametrize("suffix", [".png", ".pfm", ".npy"])
def test_a_value_map_comes_back_from_its_file(tmp_path, suffix):
    values = RNG(0).uniform(0.5, 90, (5, 6)).astype(np.float32)
    values[2, 3] = np.nan
    ValueMap().write(tmp_path / f"a{suffix}", values)
    back = ValueMap().decode((tmp_path / f"a{suffix}").read_bytes(), (5, 6))
    np.testing.assert_allclose(back, values, atol=0.5 / 256 + 1e-6 if suffix == ".png" else 0)  # half a count of the PNG


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_of_a_scene_is_drawn_and_written(tmp_path, name):
    batch = TrainBatch(
        scenes("image", name) if name != "image" else scenes("image"), AugmentConfig(crop="center", flip=False), LAYOUT(name), 0, Threads(1)
    )(0)
    kind = FIELDS[name]
    picture, caption = kind.draw(batch["image"][0], batch[name][0])
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and isinstance(caption, str)
    kind.write(tmp_path / f"a{kind.suffix}", batch[name][0])
    assert (tmp_path / f"a{kind.suffix}").stat().st_size > 0


def LAYOUT(*names, batch_size=2):
    fields = {name: FIELDS[name] for name in ("image", *names)}
    return Layout(size=(64, 64), channels=3, batch_size=batch_size, process_index=0, process_count=1, fields=fields)


def test_scenes_are_a_function_of_split_and_index():
    train, test = scenes("image", "boxes"), scenes("image", "boxes", train=False)
    np.testing.assert_array_equal(train[7]["image"], scenes("image")[7]["image"])
    assert (train[7]["image"] != train[8]["image"]).any() and (train[7]["image"] != test[7]["image"]).any()
    part = open_source(DataConfig(source="scenes", train_split="train[7:9]"), train=True, fields=("image",))
    np.testing.assert_array_equal(part[0]["image"], train[7]["image"])
    assert len(part) == 2 and part.name_of(0) == "train/7"


def test_the_annotations_of_a_scene_agree_with_each_other():
    source = scenes(*FIELDS)
    for example in (source[i] for i in range(60)):
        items = {int(row[4]) for row in example["boxes"]}
        assert len(example["boxes"]) == example["count"] and set(np.flatnonzero(example["labels"])) == items
        assert items <= set(np.unique(example["segmentation"]).astype(int) - 1)
        np.testing.assert_array_equal(example["segmentation"] == 0, example["disparity"] == 0)
        np.testing.assert_allclose(example["depth"], 10 / (1 + example["disparity"]), rtol=1e-6)
        # Surfaces that both eyes see are alike: the pixel of the left at x is the right's at x -
        # disparity, where nothing nearer is before it.
        rows, columns = np.mgrid[:64, :64]
        right = columns - example["disparity"].astype(int)
        seen = right >= 0
        same = seen & (example["disparity2"][rows, np.maximum(right, 0)] == example["disparity"])
        np.testing.assert_array_equal(example["image2"][rows, np.maximum(right, 0)][same], example["image"][same])
        assert same.mean() > 0.8


def test_a_flipped_pair_is_a_pair():
    config = AugmentConfig(crop="center")
    names = ("image", "image2", "disparity", "disparity2")
    source = scenes(*names)
    batches = train_batches(source, augment=config, data=SCENES, image_size=64, channels=3, batch_size=24, seed=1)
    with batches:
        batch = next(batches)
    flipped = 0
    for i in range(24):
        rows, columns = np.mgrid[:64, :64]
        right = columns - batch["disparity"][i].astype(int)
        same = (right >= 0) & (batch["disparity2"][i][rows, np.maximum(right, 0)] == batch["disparity"][i])
        np.testing.assert_array_equal(batch["image2"][i][rows, np.maximum(right, 0)][same], batch["image"][i][same])
        flipped += not any((source[int(j)]["image"] == batch["image"][i]).all() for j in order(source, 1)[i : i + 1])
    assert 5 < flipped < 19


def order(source, seed):
    return ShuffledOrder(len(source), seed)(np.arange(24))


@pytest.mark.parametrize(
    ("names", "config", "words"),
    [
        (("disparity",), AugmentConfig(crop="center"), "disparity cannot be augmented so: augment.flip=true exchanges left and right"),
        (("disparity",), AugmentConfig(crop="center", flip=False, policy="rand-m9"), "rotates images"),
        (("segmentation",), AugmentConfig(policy="augmix-m3"), "mixes copies of an image that have moved differently"),
        (("count",), AugmentConfig(), 'augment.crop="random_resized" leaves parts of the image out'),
    ],
)
def test_what_a_field_cannot_follow_is_refused_in_one_line(names, config, words):
    with pytest.raises(ConfigError, match=words):
        train_batches(scenes("image", *names), augment=config, data=SCENES, image_size=64, channels=3, batch_size=4, seed=0)


def test_a_field_that_the_data_lacks_is_refused_with_those_it_has():
    with pytest.raises(ConfigError, match=r'data.source=bundled \(train\) has no field "depth".*it has image, label'):
        open_source(DataConfig(), train=True, fields=("image", "depth"))
    with pytest.raises(ConfigError, match=r'no field "label"'):
        open_source(SCENES, train=True)


def test_evaluation_numbers_its_images_and_leaves_rows_without_one_void():
    source = open_source(DataConfig(source="scenes", eval_split="test[:5]"), train=False, fields=("image", "segmentation", "boxes"))
    options = {"data": SCENES, "image_size": (48, 64), "channels": 3}
    batches = list(eval_batches(source, batch_size=4, fit="letterbox", **options))
    index = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert index.dtype == np.int64 and index[mask].tolist() == [0, 1, 2, 3, 4]
    assert (batches[1]["segmentation"][1:] == 255).all() and (batches[1]["boxes"][1:] == -1).all()
    assert (batches[0]["segmentation"][:, :, :8] == 255).all()  # the bars of the letterbox
    assert (batches[0]["segmentation"][:, :, 8:56] != 255).all()


def test_batches_of_fields_are_the_same_for_any_threads_and_processes():
    config = AugmentConfig(crop="scale_jitter", policy="rand-m9-mstd0.5", jitter_scale=(0.5, 2.0))
    source = scenes("image", "segmentation", "boxes", "depth")

    def take(data=SCENES, **options):
        with train_batches(source, augment=config, data=data, image_size=48, channels=3, batch_size=4, seed=3, **options) as batches:
            return [next(batches) for _ in range(3)]

    expected, source = take(), pickle.loads(pickle.dumps(source))  # as worker processes are given it
    others = [take(DataConfig(source="scenes", num_threads=3))]
    parts = [take(process_index=i, process_count=2) for i in range(2)]
    others.append([{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)])
    for other in others:
        for one, another in zip(expected, other, strict=True):
            assert one.keys() == another.keys() == {"image", "segmentation", "boxes", "depth"}
            for key in one:
                np.testing.assert_array_equal(one[key], another[key])


class Unnamed:
    """A source of the user's own whose fields do not name its classes."""

    class_names, channels, fingerprint = ("a", "b"), 1, ""
    fields = {"image": Image(), "segmentation": IndexMap(), "boxes": Boxes(), "label": Label()}  # noqa: RUF012
    outside = {1: ("segmentation", np.full((8, 8), 2, np.uint8)), 2: ("boxes", [[0, 0, 4, 4, 7]]), 3: ("label", 2)}  # noqa: RUF012

    def __len__(self):
        return 6

    def __getitem__(self, index):
        example = {"image": np.zeros((8, 8, 1), np.uint8), "segmentation": np.full((8, 8), 255, np.uint8), "boxes": [], "label": -1}
        return example | dict([self.outside[index]] if index in self.outside else [])

    def name_of(self, index):
        return str(index)


def test_a_class_outside_of_the_sources_names_is_counted_and_named():
    options = {"image_size": 8, "channels": 1, "batch_size": 6, "interpolation": "bilinear", "crop_fraction": 1.0}
    with eval_batches(Unnamed(), data=DataConfig(max_bad_fraction=1.0, num_threads=1), **options) as batches:
        (batch,) = batches
        assert batch["mask"].tolist() == [True, False, False, False, True, True]
        reasons = list(batches.bad.reasons.values())
    words = ["segmentation: a class outside: 2 is not in 0..1", "boxes: a class outside", "label: a class outside: 2 is not in 0..1"]
    assert all(reason.startswith(word) for reason, word in zip(reasons, words, strict=True)), reasons

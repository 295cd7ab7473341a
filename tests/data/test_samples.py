"""Images of any number of channels and type of samples, from files to the model's input."""

import dataclasses
import io

import cv2
import numpy as np
import pytest

from tests.train.conftest import tiny_experiment
from vitlab.config import AugmentConfig, ConfigError, DataConfig, TaskConfig
from vitlab.data import open_source
from vitlab.data.augment import evaluation_warp, flip_rows, resize
from vitlab.data.flow import Flow
from vitlab.data.headers import DecodeError
from vitlab.data.prepare import main as prepare
from vitlab.data.samples import samples_of
from vitlab.data.warp import Move, Warp, flip_matrix, resample
from vitlab.preview import field_sheet as preview
from vitlab.runs.loaded import load_run
from vitlab.train.loop import train
from vitlab.train.setup import set_up

RNG = np.random.default_rng(0)


def npy(array, save=np.save):
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def png(array, suffix=".png"):
    return cv2.imencode(suffix, array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


FIVE = RNG.integers(0, 65536, (6, 8, 5)).astype(np.uint16)
READ = {
    "npy": (npy(FIVE), FIVE),
    "npz": (npy(FIVE, np.savez_compressed), FIVE),
    "16-bit png": (png(FIVE[..., :3]), FIVE[..., :3]),
    "grey 16-bit png": (png(FIVE[..., 0]), FIVE[..., :1]),
    "16-bit tiff": (png(FIVE[..., :3], ".tiff"), FIVE[..., :3]),
    "float64 npy": (npy(FIVE.astype(np.float64)), FIVE.astype(np.float32)),
    "pfm": (b"PF\n8 6\n-1.0\n" + FIVE[::-1, :, :3].astype("<f4").tobytes(), FIVE[..., :3].astype(np.float32)),
}


@pytest.mark.parametrize("name", READ)
def test_samples_are_read_as_they_are(name):
    data, expected = READ[name]
    found = samples_of(data, expected.shape[2], expected.dtype.name)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy(FIVE[..., :4]), r"must be \[height, width, 5\]"),
        (npy(FIVE.astype(np.uint8)), "an image of uint8; it must be uint16"),
        (npy(FIVE)[:-3], "damaged .npy"),
        (npy(FIVE, np.savez)[:100], "damaged .npz"),
        (npy((FIVE, FIVE), lambda file, both: np.savez(file, a=both[0], b=both[1])), "several arrays"),
        (b"\xff\xd8\xff", "no image of samples"),
    ],
)
def test_what_is_not_declared_is_refused(data, words):
    with pytest.raises(DecodeError, match=words):
        samples_of(data, 5, "uint16")
    with pytest.raises(DecodeError, match="not finite"):
        samples_of(np.full((2, 2, 1), np.nan, np.float32), 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_each_channel_moves_as_a_picture_of_its_own(dtype):
    image = RNG.integers(0, 256, (21, 30, 7)).astype(dtype)
    moves = {
        "train": lambda x: resize(x, (8, 9), "bicubic"),
        "enlarged": lambda x: resize(x, (40, 50), "bilinear"),
        "evaluation": lambda x: evaluation_warp(x.shape[:2], (8, 9), "bilinear", 0.9).apply(x),
        "flipped": flip_rows,
        "resampled": lambda x: resample(x, matrix=(0.9, 0.1, 1, -0.1, 0.9, 2), size=(12, 13)),
    }
    for move in moves.values():
        found = move(image)
        assert found.dtype == dtype
        for channel in range(7):
            alone = move(np.ascontiguousarray(image[..., channel : channel + 1]))
            np.testing.assert_allclose(
                found[..., channel].astype(float), alone[..., 0].astype(float), atol=1.01
            )  # OpenCV rounds by its way


def scenes(folder, count=8, dtype="uint16"):
    for split in ("train", "test"):
        for kind in ("images", "maps"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            label = RNG.integers(0, 2, (20, 24)).astype(np.uint8)
            image = np.stack([label.astype(np.int64) * (1000 * channel + 1) for channel in range(5)], -1).astype(dtype)
            np.save(folder / "images" / split / f"{i}.npy", image)
            cv2.imwrite(str(folder / "maps" / split / f"{i}.png"), label)


FILES = ("image=images/{split}/{stem}.npy channels=5 dtype=uint16", "segmentation=maps/{split}/{stem}.png classes=a,b")


def test_five_channels_of_16_bits_train_evaluate_and_predict_from_files_and_from_shards(tmp_path):
    scenes(tmp_path / "data")
    base = tiny_experiment(duration="2 steps", eval_every="2 steps", batch_size=4)
    model = dataclasses.replace(base.model, mean=(0.01,), std=(0.02,) * 5, max_value=65535.0)
    data = DataConfig(source="pairs", data_dir=str(tmp_path / "data"), files=FILES, num_threads=1)
    task = TaskConfig(name="segmentation", fields={"head": "linear"})
    experiment = dataclasses.replace(base, model=model, data=data, task=task, augment=AugmentConfig(crop="pad"))
    trained = train(experiment, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.trained.channels == 5 and np.isfinite(trained["eval_loss"])
    image = np.load(tmp_path / "data" / "images" / "test" / "0.npy")
    assert run.results(image)["segmentation"].shape == (20, 24)
    np.testing.assert_array_equal(
        run.results(str(tmp_path / "data" / "images" / "test" / "0.npy"))["segmentation"], run.results(image)["segmentation"]
    )

    arguments = [str(tmp_path / "data"), str(tmp_path / "shards"), "--source=pairs", *(f"--file={entry}" for entry in FILES)]
    assert prepare(arguments) == 0
    shards = open_source(DataConfig(source="shards", data_dir=str(tmp_path / "shards")), train=True, fields=("image", "segmentation"))
    assert shards.channels == 5 and shards.fields["image"].dtype == "uint16"
    stems = sorted(shards.fields["image"].decode(shards[i]["image"]).sum() for i in range(8))
    assert stems == sorted(np.load(path).sum() for path in (tmp_path / "data" / "images" / "train").glob("*.npy"))

    with pytest.raises(ConfigError, match=r"the images are uint16: set model.max_value"):
        set_up(dataclasses.replace(experiment, model=base.model))
    with pytest.raises(ConfigError, match="augment.policy and augment.color_jitter change pictures of 8 bits"):
        preview(dataclasses.replace(experiment, augment=AugmentConfig(color_jitter=0.4)))
    assert preview(experiment, count=2)[1] == 2
    with pytest.raises(ConfigError, match="model.in_channels=3 must be 5"):
        set_up(dataclasses.replace(experiment, model=dataclasses.replace(model, in_channels=3)))


def test_a_flow_turns_scales_and_mirrors_with_its_image(tmp_path):
    kind, flow = Flow(), RNG.normal(size=(6, 8, 2)).astype(np.float32)
    flow[0, 0] = np.nan
    kind.write(tmp_path / "x.flo", flow)
    np.testing.assert_array_equal(kind.decode((tmp_path / "x.flo").read_bytes(), (6, 8)), flow)
    np.testing.assert_array_equal(kind.decode(npy(flow)), flow)
    mirrored = kind.warp(flow, Warp((6, 8), (Move(matrix=flip_matrix(8), size=(6, 8), pixels=None),)))
    np.testing.assert_allclose(mirrored, flow[:, ::-1] * [-1, 1], rtol=1e-6)
    doubled = kind.warp(flow, Warp((6, 8), (Move(matrix=(0.5, 0, 0, 0, 1, 0), size=(6, 16), pixels=None),)))
    np.testing.assert_allclose(doubled[:, ::2], flow * [2, 1], rtol=1e-6)
    assert kind.draw(np.zeros((6, 8, 3), np.uint8), flow)[0].shape == (6, 8, 3)
    for damaged in (b"PIEH", (tmp_path / "x.flo").read_bytes()[:-1], npy(flow[..., :1])):
        with pytest.raises(DecodeError):
            kind.decode(damaged)

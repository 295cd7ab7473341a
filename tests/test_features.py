"""`python -m vitlab.features` on a tiny random DINOv2, and maps as colours."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from vitlab import create_model, features
from vitlab.config import ConfigError
from vitlab.drawing.principal import principal_colours
from vitlab.weights.save import to_foreign

FIELDS = {"dim": 16, "depth": 2, "num_heads": 2, "image_size": 28}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns a folder with a model and pictures, one of which is broken."""
    root = tmp_path_factory.mktemp("features")
    model = create_model("dinov2_small_patch14", rngs=nnx.Rngs(0), **FIELDS)
    save_file(to_foreign(model), root / "model.safetensors")
    (root / "photos").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (30 + i, 50, 3), np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{i}.png")
    (root / "photos" / "broken.png").write_bytes(b"none")
    return root, model


def arguments(root, output, *more):
    fields = [f"--config.model.{name}={value}" for name, value in FIELDS.items()]
    weights = f"--weights={root}/model.safetensors"
    return ["--model=dinov2_small_patch14", weights, *fields, f"--output={output}", *more, f"{root}/photos"]


def test_a_folder_becomes_an_array_and_a_picture(checkpoint, tmp_path, capsys):
    root, model = checkpoint
    output, picture = tmp_path / "features.npz", tmp_path / "maps.png"
    assert features.main(arguments(root, output, "--maps", f"--picture={picture}", "--batch_size=2")) == 2
    printed, errors = capsys.readouterr()
    assert "features of 3 pictures, 16 numbers each" in printed and "broken.png is no image that can be decoded" in errors
    with np.load(output) as found:
        paths, vectors, maps = found["paths"], found["features"], found["maps"]
    assert [path.rpartition("/")[2] for path in paths] == ["0.png", "1.png", "2.png"]
    assert vectors.shape == (3, 16) and maps.shape == (3, 2, 2, 16)
    from vitlab.data.augment import resize_and_center_crop

    pixels = resize_and_center_crop(np.asarray(Image.open(paths[1])), (28, 28), "bicubic", 224 / 256)
    recipe = model.preprocessing
    images = ((pixels / 255 - np.array(recipe.mean)) / np.array(recipe.std)).astype(np.float32)[None]
    np.testing.assert_allclose(vectors[1], model(images)[0], atol=1e-5)  # float32 sums in another order
    np.testing.assert_allclose(maps[1], model.features(images)[-1][0], atol=1e-5)
    drawn = np.asarray(Image.open(picture))
    assert drawn.ndim == 3 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


def test_an_array_alone_has_a_row_a_picture(checkpoint, tmp_path):
    root, _ = checkpoint
    assert features.main(arguments(root, tmp_path / "x.npy")) == 2
    assert np.load(tmp_path / "x.npy").shape == (3, 16)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--output=x.txt"], r"--output=x.txt must be a file \*.npz or \*.npy"),
        (["--output=x.npy", "--maps"], "--maps needs --output=.*npz"),
        (["--output=x.npy", "--picture=x.jpg"], r"--picture=x.jpg must be a file \*.png"),
        (["--output=x.npy", "--batch_size=0"], "must be at least 1"),
        (["--output=x.npy", "--workdir=y"], "either --workdir=DIR, or --model=NAME"),
    ],
)
def test_wrong_arguments_are_refused(more, words):
    with pytest.raises(ConfigError, match=words):
        features.main(["--model=dinov2_small_patch14", "--weights=z", *more, "a.png"])


def test_pictures_of_which_none_can_be_read_are_an_error(checkpoint, tmp_path):
    root, _ = checkpoint
    with pytest.raises(ConfigError, match="none of the 1 pictures could be read"):
        features.main([*arguments(root, tmp_path / "x.npy")[:-1], f"{root}/photos/broken.png"])


def test_the_components_are_those_of_a_singular_value_decomposition():
    maps = np.random.default_rng(0).normal(size=(2, 4, 5, 6)) * np.array([9, 5, 3, 0.1, 0.1, 0.1])
    colours = principal_colours(maps).astype(float).reshape(-1, 3)
    tokens = maps.reshape(-1, 6) - maps.reshape(-1, 6).mean(0)
    _, _, axes = np.linalg.svd(tokens, full_matrices=False)
    for i in range(3):
        assert abs(np.corrcoef(colours[:, i], tokens @ axes[i])[0, 1]) > 0.99  # but for the ends that are cut off
    np.testing.assert_array_equal(principal_colours(maps), principal_colours(maps.copy()))
    assert principal_colours(np.ones((1, 2, 2, 2))).shape == (1, 2, 2, 3)
    with pytest.raises(ValueError, match="NaN or infinity"):
        principal_colours(np.full((1, 2, 2, 4), np.nan))

"""Models are saved in their checkpoint's names: file -> model -> an equal file."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from tests.weights.recorded import classes_of, model_of
from tests.weights.test_parity import FAMILIES
from vitlab import create_model, load_weights
from vitlab.models.registry import abstract_model, list_models
from vitlab.weights.load import parameters
from vitlab.weights.naming import foreign_names, maps_of
from vitlab.weights.reading import read_tensors
from vitlab.weights.save import save_weights, to_foreign

FIELDS = {"depth": 1, "dim": 16, "num_heads": 2, "num_classes": 5, "image_size": 32}


def state_of(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns names and shapes of a recorded checkpoint's tensors, filled with distinct numbers."""
    with np.load(path, allow_pickle=False) as golden:
        meta = json.loads(str(golden["meta"]))
        shapes = {str(n): json.loads(str(s)) for n, s in zip(golden["names"], golden["shapes"], strict=True)}
    return meta, {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in shapes.items()}


@pytest.mark.goldens(*FAMILIES)
def test_a_checkpoint_comes_back_bit_for_bit(golden_file):
    meta, state = state_of(golden_file)
    name, fields = model_of(golden_file.stem, meta)
    classes = classes_of(meta, {tensor: value.shape for tensor, value in state.items()})
    model = abstract_model(name, num_classes=classes, image_size=tuple(meta["image_size"]), **fields)
    report = load_weights(model, state)
    back = to_foreign(model)
    if golden_file.stem.startswith(("hf_", "facebook_", "google_")):  # read in these names, and saved in timm's
        again = abstract_model(name, num_classes=classes, image_size=tuple(meta["image_size"]), **fields)
        assert load_weights(again, back).name_map == "timm"
        for key, value in parameters(model).items():
            np.testing.assert_array_equal(parameters(again)[key][...], value[...])
        return
    assert back.keys() == state.keys() - set(report.ignored)
    assert all(n.startswith("aux_head.") for n in report.ignored)  # an auxiliary head of OverLoCK
    for key, value in back.items():
        assert value.shape == state[key].shape, key
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_variant_has_foreign_names(name):
    model = abstract_model(name)
    names, maps = list(parameters(model)), maps_of(model)
    assert set(foreign_names(names, maps)) == set(names)


@pytest.mark.parametrize(
    ("name", "here", "foreign"),
    [
        ("nat_isotropic_small", "levels.0.blocks.11.attn.rpb", "layers.11.attn.rpb"),
        ("dinat_s_tiny", "levels.1.downsample.norm.bias", "layers.0.downsample.norm.bias"),
        ("biformer_stl", "stages.0.downsample.norm.bias", "downsample_layers.0.1.bias"),
        ("biformer_stl", "stages.1.downsample.norm.bias", "downsample_layers.1.0.bias"),
        ("biformer_stl", "stages.0.blocks.1.norm1.bias", "stages.0.blocks.1.norm1.bias"),
        ("glnet_stl", "stages.1.downsample.norm.bias", "downsample_layers.1.0.bias"),
    ],
)
def test_a_variant_with_other_names_has_its_own(name, here, foreign):
    model = abstract_model(name)
    assert foreign_names(parameters(model), maps_of(model))[here][0] == foreign


def test_saved_weights_are_read_again_with_their_grid(tmp_path):
    # A grid of 2 x 8, which has as many patches as 4 x 4.
    source = create_model("vit_tiny_patch16", rngs=nnx.Rngs(3), **(FIELDS | {"image_size": (32, 128)}))
    save_weights(source, tmp_path / "a.safetensors", {"model": "vit_tiny_patch16"})
    model = create_model("vit_tiny_patch16", **(FIELDS | {"image_size": (32, 128)}))
    report = load_weights(model, tmp_path / "a.safetensors")
    assert not report.resampled
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(value[...], parameters(source)[name][...])
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata()["model"] == "vit_tiny_patch16" and file.metadata()["format"] == "pt"
    square = create_model("vit_tiny_patch16", **(FIELDS | {"image_size": 64}))
    assert load_weights(square, tmp_path / "a.safetensors").rules == {"pos_embed": "2 x 8 to 4 x 4 positions, bicubic with antialiasing"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = create_model("vit_tiny_patch16", **FIELDS)
    model.norm.bias[...] = model.norm.bias[...].at[2].set(np.nan)
    with pytest.raises(ValueError, match="1 tensors are not finite, first norm.bias"):
        save_weights(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


class Small(nnx.Module):
    """A user's own network."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.conv(x), use_running_average=True).mean((1, 2)))


def test_a_network_that_is_not_of_the_zoo_keeps_its_own_names(tmp_path):
    source, model = Small(nnx.Rngs(1)), Small(nnx.Rngs(2))
    save_weights(source, tmp_path / "own.safetensors")
    assert read_tensors(tmp_path / "own.safetensors")["conv.weight"].shape == (4, 3, 3, 3)
    report = load_weights(model, tmp_path / "own.safetensors")
    assert report.name_map == "vitlab" and not report.misfits
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    np.testing.assert_array_equal(model(x), source(x))

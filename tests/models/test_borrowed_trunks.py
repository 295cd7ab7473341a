"""DeiT, Swin and PVT with another mechanism: cases that a family's smallest variant misses."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab import load_weights
from vitlab.models.registry import abstract_model

NAMES = ["agent_swin_tiny", "agent_pvt_tiny", "inline_swin_tiny", "inline_pvt_tiny"]


def shapes(name, method, height, width, **fields):
    """Returns the shapes that a method of a variant gives for one image; it computes nothing."""
    graphdef, state = nnx.split(abstract_model(name, image_size=64, num_classes=10, **fields))
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(lambda state, x: getattr(nnx.merge(graphdef, state), method)(x), state, images)


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_their_strides_and_a_rectangular_image_of_another_size_is_taken(name):
    maps = shapes(name, "features", 96, 160, depths=(2, 1, 1, 1), dtype="bfloat16", remat="full")
    info = abstract_model(name, image_size=64).feature_info
    assert [fmap.shape[1:] for fmap in maps] == [(96 // i.stride, 160 // i.stride, i.dim) for i in info]
    assert {fmap.dtype.name for fmap in maps} == {"bfloat16"}


@pytest.mark.parametrize("name", ["agent_pvt_tiny", "inline_pvt_tiny"])
def test_an_image_too_small_for_the_last_stage_is_refused(name):
    with pytest.raises(ValueError, match="use larger images"):
        shapes(name, "features", 16, 64, depths=(1, 1, 1, 1))


@pytest.mark.parametrize("name", ["agent_deit_tiny", "inline_deit_tiny"])
def test_an_image_of_broken_patches_is_refused(name):
    with pytest.raises(ValueError, match="must be multiples of patch_size=16"):
        shapes(name, "features", 70, 64, depth=1)


def test_a_checkpoint_of_another_size_has_its_positions_and_biases_resized():
    model = abstract_model("agent_pvt_tiny", image_size=128)
    _, state, _ = golden.load(pathlib.Path(__file__).parent.parent / "goldens" / "agent_pvt_tiny.npz")
    report = load_weights(model, state)
    lines = [f"attn.{way}_bias" for way in ("ah", "aw", "ha", "wa")]
    expected = {f"stages.{i}.{name}" for i in range(4) for name in ("embed.pos_map", *(f"blocks.{j}.{n}" for j in (0, 1) for n in lines))}
    assert set(report.resampled) == expected
    assert model.stages[0].embed.pos_map.shape == (1, 32, 32, 64)
    assert model.stages[0].blocks[0].attn.ah_bias.shape == (1, 9, 32)

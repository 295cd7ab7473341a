"""The catalogue of published checkpoints, and models that take one by its short name."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import vitlab
from vitlab.config import ConfigError, ModelConfig
from vitlab.data.channels import model_channels
from vitlab.models import __main__ as command
from vitlab.models.catalogue import PIXELS, address_of, checkpoints_of, listed
from vitlab.models.registry import list_models, model_config
from vitlab.weights.save import to_foreign

FIELDS = {"dim": 16, "depth": 1, "num_heads": 2, "image_size": 28, "pos_grid": (3, 3)}


def test_every_row_is_of_a_variant_and_can_be_had():
    assert {row.variant for row in listed()} <= set(list_models())
    assert len({(row.variant, row.name) for row in listed()}) == len(listed())
    for row in listed():
        assert row.name.isidentifier() and row.pixels in PIXELS and bool(row.figure) == bool(row.measure) and row.source
        if not row.by_hand:
            owner, name, *file = row.address.removeprefix("hf://").split("/")
            assert owner and name and (not file or file[-1].endswith(".safetensors"))


def test_the_command_lists_the_checkpoints_of_each_variant(capsys):
    assert command.main(["dinov3_large*", "--weights"]) == 0
    text = capsys.readouterr().out
    assert "hf://timm/vit_large_patch16_dinov3_qkvb.lvd1689m" in text and "dinov3-license" in text and "8aa4cbdd" in text
    with pytest.raises(ConfigError, match="no published checkpoint of these"):
        command.main(["terminator*", "--weights"])


def test_a_short_name_is_fetched_and_loaded(monkeypatch, tmp_path):
    source = vitlab.create_model("dinov2_small_patch14", **FIELDS)
    save_file(to_foreign(source), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr("vitlab.weights.load.download", lambda address: asked.append(address) or tmp_path / "model.safetensors")
    model = vitlab.create_model("dinov2_small_patch14", weights="dinov2", **FIELDS)
    assert asked == ["hf://timm/vit_small_patch14_dinov2.lvd142m"]
    np.testing.assert_array_equal(model.blocks[0].attn.qkv.kernel[...], source.blocks[0].attn.qkv.kernel[...])
    with_head = vitlab.create_model("dinov2_small_patch14", weights="dinov2", num_classes=3, **FIELDS)
    assert with_head.head.out_features == 3
    by_path = vitlab.create_model("dinov2_small_patch14", weights=tmp_path / "model.safetensors", **FIELDS)
    np.testing.assert_array_equal(by_path.cls_token[...], source.cls_token[...])


def test_a_name_that_is_not_listed_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match='dinov2_small_patch14 has no checkpoint "webli"; the catalogue has dinov2: give a file'):
        vitlab.create_model("dinov2_small_patch14", weights="webli")
    with pytest.raises(ValueError, match="facebook of dinov3_base_patch16 is given on request: give the path of your dinov3_vitb16"):
        address_of("dinov3_base_patch16", "facebook")


def test_a_checkpoint_of_other_pixels_is_given_them(monkeypatch):
    monkeypatch.setattr("vitlab.weights.pretrained.load_weights", lambda *_, **__: None)
    fields = {name: value for name, value in FIELDS.items() if name != "pos_grid"} | {"patch_size": 14}
    model = vitlab.create_model("openclip_large_patch14", weights="laion2b", **fields)
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert model_config("openclip_large_patch14").preprocessing.mean != (0.5, 0.5, 0.5)
    assert set(checkpoints_of("openclip_large_patch14")) == {"laion2b", "datacomp"}


def test_published_weights_are_of_images_in_colour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert [model_channels(ModelConfig(weights=w), 1) for w in ("dinov2", "run", "runs/a", "a.safetensors", None)] == [3, 1, 1, 3, 1]

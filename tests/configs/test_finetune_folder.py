"""Folders and weights whose names contain commas."""

import pathlib

import pytest

from vitlab.cli import load_experiment
from vitlab.config import ConfigError

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "finetune_folder.py"


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("images", ("images", "vit_tiny_patch16", None)),
        ("/path/with, comma", ("/path/with, comma", "vit_tiny_patch16", None)),
        ("/a,b, c,swin_tiny", ("/a,b, c", "swin_tiny", None)),
        ("/images,swin_tiny,weights.safetensors", ("/images", "swin_tiny", "weights.safetensors")),
        ("/a, b,swin_tiny,/w, x.pth", ("/a, b", "swin_tiny", "/w, x.pth")),
        ("gs://bucket/a,vit_tiny_patch16,hf://owner/name", ("gs://bucket/a", "vit_tiny_patch16", "hf://owner/name")),
        ("swin_tiny", ("swin_tiny", "vit_tiny_patch16", None)),
    ],
)
def test_a_variant_falls_into_folder_model_and_weights(variant, expected):
    experiment = load_experiment(f"{CONFIG}:{variant}", {})
    assert (experiment.data.data_dir, experiment.model.name, experiment.model.weights) == expected


def test_a_folder_that_is_there_is_a_folder(tmp_path):
    folder = tmp_path / "cats,dogs"
    folder.mkdir()
    assert load_experiment(f"{CONFIG}:{folder}", {}).data.data_dir == str(folder)


def test_a_mistyped_model_is_refused_with_its_near_misses():
    with pytest.raises(ConfigError, match=r'"vit_tny_patch16" is no model \(did you mean vit_tiny_patch16.*is no folder'):
        load_experiment(f"{CONFIG}:/images,vit_tny_patch16", {})

"""Text towers against recorded outputs of transformers, and their published counts."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.goldens import golden
from vitlab import load_weights
from vitlab.analysis.counts import count_params
from vitlab.models.registry import list_models
from vitlab.models.text_tower import VARIANTS, TextConfig, TextTower, text_config, text_config_of

# transformers' names of fields -> the names here.
FIELDS = {
    "hidden_size": "dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "projection_dim": "out_dim",
    "projection_size": "out_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "length",
    "layer_norm_eps": "eps",
}
SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "out_dim": 6, "vocab_size": 30, "length": 7}


@pytest.mark.goldens("text_")
def test_texts_have_the_recorded_vectors(golden_file):
    meta, state, recorded = golden.load(golden_file)
    fields = {FIELDS[key]: value for key, value in meta["kwargs"].items() if key in FIELDS}
    config = dataclasses.replace(text_config_of(meta["model"]), **fields)
    tower = nnx.eval_shape(lambda: TextTower(config, rngs=nnx.Rngs(0)))
    assert load_weights(tower, state).name_map == "huggingface/transformers, CLIP and SigLIP"
    found = nnx.jit(lambda tower, tokens: tower(tokens))(tower, recorded["input/tokens"])
    # The gate is that of tests/goldens/README.md.
    assert np.abs(found - recorded["logits"]).max() <= 2e-5 * recorded["logits"].std()


# Millions of parameters: open_clip docs/model_profile.csv.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("clip_base_patch32", 63.43),
        ("clip_large_patch14_336", 123.65),
        ("openclip_huge_patch14", 354.03),
        ("openclip_giant_patch14", 354.03),
        ("openclip_gigantic_patch14", 694.66),
        ("eva02_clip_large_patch14", 123.65),
        ("siglip_base_patch16", 110.27),
        ("siglip_large_patch16_256", 336.19),
        ("siglip_so400m_patch14", 449.68),
    ],
)
def test_the_towers_have_the_published_number_of_parameters(name, millions):
    tower = nnx.eval_shape(lambda: TextTower(text_config_of(name), rngs=nnx.Rngs(0)))
    assert count_params(tower) / 1e6 == pytest.approx(millions, abs=0.006)  # the published figures have two decimals


def test_every_pair_of_towers_gives_vectors_of_one_width():
    from vitlab.models.registry import abstract_model

    named = [name for name in list_models() if text_config(name)]
    assert {next(start for start in VARIANTS if f"{name}_".startswith(f"{start}_")) for name in named} == set(VARIANTS)
    for name in named:
        model = abstract_model(name, depth=1)
        size = (1, *model.preprocessing.image_size, 3)
        width = jax.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct(size, np.float32)).shape[-1]
        assert width == text_config_of(name).out_dim, name


def test_a_causal_tower_reads_up_to_the_largest_token_and_another_all_of_them():
    tokens = np.array([[28, 3, 4, 29, 0, 0, 0], [28, 3, 4, 29, 5, 6, 7]])
    for causal, pool in ((True, "largest"), (False, "last")):
        tower = TextTower(TextConfig(**SMALL, is_causal=causal, pool=pool), rngs=nnx.Rngs(0))
        one, other = np.asarray(tower(jax.numpy.asarray(tokens)))
        assert np.allclose(one, other, atol=1e-6) == causal


def test_a_model_without_a_text_tower_is_refused_with_those_that_have_one():
    with pytest.raises(ValueError, match=r'"clipp_base" has no text tower.*clip_base'):
        text_config_of("clipp_base")
    with pytest.raises(ValueError, match="depth=0 must be in"):
        TextConfig(**(SMALL | {"depth": 0}))

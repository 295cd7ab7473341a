"""A small version of every variant of the zoo, and the trainer's functional form."""

import dataclasses

import jax
import pytest
from flax import nnx

from vitlab.models.registry import create_model, family_of, list_models, model_config


def _size(name: str) -> tuple[bool, float]:
    published = family_of(name).published[name]
    millions = (published.params or 0) / 1e6 or published.params_m or 1e9
    return "distilled" not in name, millions


# Family -> its smallest variant, which runs in the tests of behaviour (ViT's has the second head).
# Other variants are only counted.
REPRESENTATIVES = {family_of(name).model: name for name in sorted(list_models(), key=_size, reverse=True)}


def fewer_parts(config, in_the_middle: int = 2) -> dict:
    """Returns fields that shorten compilation: one block per stage, no large kernels.

    The middle stage has `in_the_middle` blocks.
    """
    names = {f.name for f in dataclasses.fields(config)}
    shrink = {}
    if "depths" in names:
        shrink["depths"] = tuple(min(d, in_the_middle if i == len(config.depths) // 2 else 1) for i, d in enumerate(config.depths))
    if "decoder_depths" in names:
        shrink["decoder_depths"] = (1,) * len(config.decoder_depths)
    if "depth" in names:
        shrink["depth"] = min(config.depth, in_the_middle)
    if isinstance(getattr(config, "layer_scale_init", None), float):
        shrink["layer_scale_init"] = 0.1  # so that what the branches add is felt
    if "kernel_sizes" in names:
        shrink["kernel_sizes"] = tuple(min(k, 5) for k in config.kernel_sizes)
    return shrink


def small(name: str, **fields):
    """Returns a small version of a variant, with 10 classes."""
    return create_model(name, **({"num_classes": 10} | fewer_parts(model_config(name)) | fields))


def size_of(name: str) -> int:
    """Returns a side in pixels that suffices for the family's smallest map and is whole patches."""
    return {"CrossViT": 96, "EfficientViT": 128, "Terminator": 16, "MorpMamba": 8}.get(family_of(name).model.__name__, 64)


def apply(model, images, **kwargs):
    """Returns the model's output under jit, from the functional form."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x, **kwargs))(state, images)


@pytest.fixture(params=sorted(REPRESENTATIVES.values()), scope="module")  # the scope groups the tests of one model
def representative(request):
    return request.param

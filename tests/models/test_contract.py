"""Every family of the registry keeps the contract of `vitlab.models.contract`."""

import abc
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pallas_kernels
import vitlab
from tests.models.conftest import REPRESENTATIVES, size_of, small
from vitlab.models.contract import VisionConfig, VisionModel
from vitlab.models.features import Features
from vitlab.models.registry import abstract_model, create_model, family_of, list_models, model_config

HOOKS = {"head_logits", "training_outputs"}  # methods that a family may override besides abstract ones


def contract_members():
    return {name: member for name, member in vars(VisionModel).items() if callable(member) or isinstance(member, property)}


def is_final(member):
    return getattr(getattr(member, "fget", member), "__final__", False)


@functools.cache
def abstract(name, **fields):
    return nnx.split(nnx.eval_shape(lambda: small(name, image_size=size_of(name), **fields)))


def shapes(name, call, *arguments, **fields):
    """Returns the shapes of `call(model, *arguments)`.

    It computes nothing, so that arguments may be shapes too.
    """
    graphdef, state = abstract(name, **fields)
    return jax.eval_shape(lambda state, arguments: call(nnx.merge(graphdef, state, copy=True), *arguments), state, arguments)


def image(name, channels=3, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((2, size_of(name), size_of(name), channels), dtype)


def test_every_member_of_the_contract_is_abstract_final_or_a_hook():
    own = {name for name in contract_members() if not name.startswith("_") or name in ("__init__", "__call__")}
    kinds = {name: (is_final(member), getattr(member, "__isabstractmethod__", False)) for name, member in contract_members().items()}
    assert {name for name in own if not any(kinds[name])} == HOOKS
    assert {name for name in own if kinds[name][0]} == {"preprocessing", "checked", "__call__"}
    assert set(VisionModel.__abstractmethods__) == {"__init__", "features", "pool", "feature_info"}


@pytest.mark.parametrize("model", REPRESENTATIVES, ids=lambda model: model.__name__)
def test_a_family_keeps_the_contract_and_overrides_nothing_that_is_final(model):
    assert issubclass(model, VisionModel)
    between = model.__mro__[: model.__mro__.index(VisionModel)]
    overridden = {name for cls in between for name in vars(cls) if name in contract_members()}
    assert {name for name in overridden if is_final(contract_members()[name])} == set()
    assert {name for name in overridden if not name.startswith("_")} <= VisionModel.__abstractmethods__ | HOOKS
    config = type(model_config(REPRESENTATIVES[model]))
    assert issubclass(config, VisionConfig) and not {"check_size", "check_stages", "checked_field"} & vars(config).keys()


def test_every_variant_is_of_the_contract():
    for name in list_models():
        family = family_of(name)
        assert issubclass(family.model, VisionModel) and isinstance(family.variants[name], VisionConfig)


def test_a_model_without_all_of_the_contract_cannot_be_made():
    class Half(VisionModel[VisionConfig]):
        def __init__(self, config, *, rngs):
            self.config = config

        def features(self, images, *, train=False, rngs=None):
            return Features([self.checked(images)])

    assert isinstance(VisionModel, abc.ABCMeta)
    with pytest.raises(TypeError, match="abstract"):
        Half(VisionConfig(), rngs=nnx.Rngs(0))


def test_in_training_too_features_are_what_feature_info_says_and_pool_takes_them(representative):
    def both(model, images):
        features = model.features(images, train=True, rngs=nnx.Rngs(dropout=0))
        return features, model.pool(features, train=True)

    features, pooled = shapes(representative, both, image(representative))
    model, size = nnx.merge(*abstract(representative)), size_of(representative)
    assert isinstance(features, Features)
    assert [fmap.shape for fmap in features] == [(2, size // i.stride, size // i.stride, i.dim) for i in model.feature_info]
    assert pooled.ndim == 2 and pooled.shape[0] == 2 and pooled.dtype == jnp.float32
    assert features.class_tokens == () or sum(token.shape[1] for token in features.class_tokens) >= pooled.shape[1]


@pytest.mark.parametrize("entry", ["__call__", "features"])
def test_images_that_are_none_are_refused_before_the_first_layer_with_the_remedy(representative, entry):
    size, call = size_of(representative), lambda model, images: getattr(model, entry)(images)
    wrong = [
        (jax.ShapeDtypeStruct((size, size, 3), jnp.float32), r"images\[None\]"),
        (jax.ShapeDtypeStruct((2, 3, size, size), jnp.float32), r"images.transpose\(0, 2, 3, 1\)"),
        (image(representative, channels=4), "3 channels"),
        (image(representative, channels=1), "3 channels"),
        (image(representative, dtype=jnp.uint8), "normalise pixels as model.preprocessing says"),
        (image(representative, dtype=jnp.int32), "floating-point"),
        (image(representative, dtype=jnp.bool), "floating-point"),
        (image(representative, dtype=jnp.complex64), "floating-point"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), r"\[batch, height, width, 3 channels\]"),
        (jax.ShapeDtypeStruct((), jnp.float32), r"\[batch, height, width, 3 channels\]"),
        (jax.ShapeDtypeStruct((1, 2, size, size, 3), jnp.float32), r"\[batch, height, width, 3 channels\]"),
        (jax.ShapeDtypeStruct((2, 0, size, 3), jnp.float32), "both sides must be"),
    ]
    for images, words in wrong:
        with pytest.raises(ValueError, match=rf"must .*{words}|{words}.*") as error:
            shapes(representative, call, images)
        assert str(images.shape) in str(error.value) or "pixels" in str(error.value)
        assert "self." not in str(error.value)


def test_an_image_of_any_size_has_maps_or_is_refused_with_the_rule(representative):
    config = abstract_model(representative, image_size=size_of(representative)).config
    multiple = config.size_multiple
    smallest = -(-config.min_size // multiple) * multiple

    def features(height, width):
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        return shapes(representative, lambda model, x: model.features(x), images)

    assert all(min(fmap.shape) > 0 for fmap in features(smallest, 3 * smallest))
    for side in {smallest - 1} | ({smallest + 1} if multiple > 1 else set()):
        with pytest.raises(ValueError, match=f"{side}x{8 * smallest} pixels: both sides must be"):
            features(side, 8 * smallest)
        with pytest.raises(ValueError, match=f"{8 * smallest}x{side} pixels: both sides must be"):
            features(8 * smallest, side)


def test_a_numpy_array_of_any_floating_type_is_taken():
    model = create_model("vit_tiny_patch16", image_size=32, num_classes=3, dim=16, depth=1, num_heads=2)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3))
    np.testing.assert_array_equal(model(images), model(jnp.asarray(images, jnp.float32)))
    assert model(images.astype(np.float16)).dtype == jnp.float32


def test_an_int_stands_for_a_square():
    for size in (64, (64, 64)):
        assert model_config("swin_tiny", image_size=size).image_size == (64, 64)
        assert type(model_config("swin_tiny"))(dim=8, depths=(1,), num_heads=(1,), image_size=size).image_size == (64, 64)
    model = abstract_model("swin_tiny", image_size=(512, 1024))
    assert model.preprocessing.image_size == model.config.image_size == (512, 1024)


def test_features_are_a_tuple_of_maps_that_keeps_its_class_tokens_through_jax():
    features = Features([jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 1, 1, 4))], class_tokens=(jnp.full((1, 4), 5.0),))
    assert isinstance(features, tuple) and len(features) == 2
    twice = jax.jit(lambda features: jax.tree.map(lambda x: 2 * x, features))(features)
    assert isinstance(twice, Features) and float(twice[0].max()) == 2 and float(twice.class_tokens[0].max()) == 10


def test_no_message_speaks_of_self():
    for package in (vitlab, pallas_kernels):
        for path in pathlib.Path(package.__path__[0]).rglob("*.py"):
            assert not re.findall(r"\{self\.\w+=", path.read_text()), path

"""Every family trains in each precision, in a loop or not, rematerialised or not.

Drop path is on or off.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.conftest import REPRESENTATIVES, fewer_parts, size_of
from vitlab.models.registry import abstract_model, create_model, family_of, model_config

WITHOUT_DROP_PATH = {"SHViT", "EfficientViT", "DynPerceiver", "Terminator", "MorpMamba"}
KEYS = ("dtype", "scan_blocks", "remat", "drop_path_rate")
ALL = list(itertools.product(("float32", "bfloat16"), (False, True), ("none", "full", "dots"), (0.0, 0.3)))
# each pair of values of two options is in one of these
PAIRS = [
    ("bfloat16", True, "none", 0.3),
    ("float32", False, "none", 0.0),
    ("bfloat16", False, "full", 0.0),
    ("float32", True, "full", 0.3),
    ("bfloat16", True, "dots", 0.0),
    ("float32", False, "dots", 0.3),
]


def loss_and_state(model, size):
    """Returns the loss of a step of training as a function of the model's state."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, images):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return (model(images, train=True, rngs=nnx.Rngs(dropout=0)) ** 2).mean()

    return loss, params, rest, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)


def trace(name, options):
    fields = dict(zip(KEYS, options, strict=True))
    if family_of(name).model.__name__ in WITHOUT_DROP_PATH:
        fields["drop_path_rate"] = 0.0
    size = size_of(name)
    parts = fewer_parts(model_config(name), in_the_middle=3)  # the first block of a model drops no path: two other blocks are alike
    loss, *arguments = loss_and_state(abstract_model(name, image_size=size, num_classes=3, **parts, **fields), size)
    return jax.eval_shape(jax.grad(loss), *arguments)


def test_the_pairs_are_all_there():
    for (i, a), (j, b) in itertools.combinations(enumerate(zip(*ALL, strict=True)), 2):
        assert {(row[i], row[j]) for row in PAIRS} == set(itertools.product(set(a), set(b)))


@pytest.mark.usefixtures("unchecked_shapes")
def test_all_options_at_once_train(representative):
    grads = trace(representative, ("bfloat16", True, "full", 0.3))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("options", PAIRS, ids=str)
def test_every_pair_of_options_trains(representative, options):
    trace(representative, options)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("options", ALL, ids=str)
@pytest.mark.parametrize("family", ["ViT", "LITv2"])
def test_every_combination_trains(family, options):
    (name,) = (name for model, name in REPRESENTATIVES.items() if model.__name__ == family)
    trace(name, options)


def test_loops_and_recomputation_change_no_gradient():
    def grads(**options):
        fields = {"dim": 16, "depth": 4, "num_heads": 2, "image_size": 32, "num_classes": 3, "drop_path_rate": 0.5}
        loss, params, rest, images = loss_and_state(create_model("vit_tiny_patch16", **fields, **options), 32)
        images = jnp.asarray(np.random.default_rng(0).standard_normal(images.shape), jnp.float32)
        return jax.jit(jax.grad(loss))(params, rest, images)

    plain = grads()
    for scan, remat in itertools.product((False, True), ("none", "full", "dots")):
        other = grads(scan_blocks=scan, remat=remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other, plain)

"""Any trunk of the zoo under any head that can read its maps."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from tests.models.conftest import REPRESENTATIVES, fewer_parts, size_of
from vitlab.heads import HEADS, OnTrunk, unsupported_reason
from vitlab.models.registry import abstract_model, create_model, model_config

STAGED, PLAIN, SINGLE, ODD = (4, 8, 16, 32), (16, 16, 16, 16), (16,), (12, 16)
PYRAMIDS = {"semantic_fpn", "upernet", "segformer_mlp"}
NARROW = {name: {"dim": 16} for name in HEADS if name not in ("linear", "attention_pool")} | {
    "semantic_fpn": {"dim": 16, "neck_dim": 16},
    "dpt": {"dim": 16, "reassemble_dims": (8, 8, 8, 8)},
}
VECTORS = {"attention_pool"}


def fields_of(name):
    """Returns fields of a small model with as many maps as the variant has, four."""
    config = model_config(name)
    shrink = fewer_parts(config)
    return shrink | ({"depth": 4} if hasattr(config, "depth") else {}) | {"image_size": size_of(name), "num_classes": 0}


def head_on(name, info, **options):
    strides, dims = [i.stride for i in info], [i.dim for i in info]
    given = {"dims": dims, "strides": strides, "options": NARROW.get(name), "rngs": nnx.Rngs(0)} | options
    return OnTrunk(name, 3, **given)


@functools.lru_cache(maxsize=1)
def abstract_maps(name):
    fields = fields_of(name)
    model = abstract_model(name, **fields)
    size = fields["image_size"]
    return model.feature_info, nnx.eval_shape(lambda m, x: m.features(x), model, jnp.zeros((2, size, size, 3)))


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """Disables the check of argument shapes, which doubles the time to trace.

    Trunks differ in numbers only.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("trunk", sorted(REPRESENTATIVES.values()))
def test_every_trunk_stands_under_every_head_that_its_maps_allow(trunk, head):
    info, maps = abstract_maps(trunk)
    strides = [i.stride for i in info]
    if reason := unsupported_reason(head, strides):
        with pytest.raises(ValueError) as error:
            head_on(head, info)
        assert str(error.value) == reason
        return

    module = nnx.eval_shape(lambda: head_on(head, info, normalised=[i.normalised for i in info]))
    out = nnx.eval_shape(lambda m, maps: m(maps, train=True, rngs=nnx.Rngs(dropout=0)), module, maps)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    if head in VECTORS:
        assert out.shape == (2, 3)
        return
    finest, zoom = maps[module.first].shape[1:3], strides[module.first] / module.head.stride
    assert {x.shape[:3] for x in jax.tree.leaves(out)} == {(2, *(round(zoom * n) for n in finest))}


def test_maps_say_which_heads_can_stand_on_them():
    allowed = {strides: {name for name in HEADS if unsupported_reason(name, strides) is None} for strides in (STAGED, PLAIN, SINGLE, ODD)}
    assert allowed[STAGED] == allowed[PLAIN] == allowed[SINGLE] == set(HEADS)
    assert allowed[ODD] == set(HEADS) - PYRAMIDS - {"dpt"}
    assert unsupported_reason("upernet", (12, 16)) == "strides=(12, 16) must double from each map to the next"
    assert unsupported_reason("dpt", (16, 32, 64)) == "strides=(16, 32, 64) must name four maps"
    assert unsupported_reason("linear", (8, 4)) == "strides=(8, 4) must not fall: maps are listed from fine to coarse"
    assert unsupported_reason("upernet", ()) == "strides=() must name at least one map"


def test_wrong_heads_options_and_widths_are_refused():
    with pytest.raises(ValueError, match='unknown head "upper": choose from linear, fcn'):
        unsupported_reason("upper", STAGED)
    with pytest.raises(ValueError, match='head "upernet" has no option width: it takes dim, pool_sizes, dropout_rate'):
        OnTrunk("upernet", 3, dims=(8,) * 4, strides=STAGED, options={"width": 3}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must have one entry a map"):
        OnTrunk("upernet", 3, dims=(8,) * 3, strides=STAGED, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"normalised=\(True,\) must have one entry a map, 4"):
        OnTrunk("upernet", 3, dims=(8,) * 4, strides=STAGED, normalised=(True,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"reassemble_dims=\(8, 8\) must have one entry a map, 4"):
        OnTrunk("dpt", 3, dims=(8,) * 4, strides=STAGED, options={"reassemble_dims": (8, 8)}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must double"):
        HEADS["upernet"]((8,) * 4, PLAIN, 3, rngs=nnx.Rngs(0))


def test_maps_that_the_trunk_has_not_normalised_get_a_norm_if_they_are_read():
    options = {"dims": (8, 8, 16, 16), "strides": STAGED, "normalised": (False, True, False, True), "rngs": nnx.Rngs(0)}
    module = OnTrunk("linear", 3, **options)
    assert [norm is not None for norm in module.norms] == [True, False, True, False]
    maps = tuple(
        jnp.asarray(np.random.default_rng(i).standard_normal((2, 8 // 2**i, 8 // 2**i, d)), jnp.float32)
        for i, d in enumerate((8, 8, 16, 16))
    )
    scaled = (maps[0] * 7 + 3, maps[1], maps[2] * 5, maps[3])
    np.testing.assert_allclose(module(scaled, train=False), module(maps, train=False), atol=1e-4)  # the norm's epsilon
    assert not jax.tree.leaves(nnx.state(OnTrunk("attention_pool", 3, **options).norms))
    plain = OnTrunk("upernet", 3, dims=(8,) * 4, strides=PLAIN, normalised=(False,) * 3 + (True,), options={"dim": 4}, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(plain.norms))


@functools.lru_cache(maxsize=1)
def real_maps(name):
    model = create_model(name, **fields_of(name))
    size = size_of(name)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, size, size, 3)), jnp.float32)
    graphdef, state = nnx.split(model)
    return model.feature_info, jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True).features(x))(state, images)


def pulled_back(outputs):
    """Returns a number that depends on every output."""
    return sum((x * jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), x.dtype)).sum() for x in jax.tree.leaves(outputs))


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("trunk", ["swin_tiny", "vit_tiny_patch16"])
def test_every_parameter_and_every_map_that_is_read_gets_a_gradient(trunk, head):
    info, maps = real_maps(trunk)
    module = head_on(head, info, normalised=[False] * len(info))
    for _, part in nnx.iter_modules(module):
        if hasattr(part, "gamma"):
            part.gamma[...] = jnp.ones(1)  # criss-cross attention begins as the identity, whose own weights have no gradient
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    # Batch norms use running statistics: a batch's own mean would cancel every shift before the
    # norm, and the gradient of a bias.
    @jax.jit
    def run(params, maps):
        def loss(params, maps):
            return pulled_back(nnx.merge(graphdef, params, rest, copy=True)(maps, train=False))

        return jax.value_and_grad(loss, argnums=(0, 1))(params, maps)

    value, (grads, map_grads) = run(params, maps)
    assert np.isfinite(value)
    for path, grad in nnx.to_flat_state(grads):
        grad = np.asarray(grad[...])
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path
    for i, grad in enumerate(map_grads):
        assert np.isfinite(grad).all()
        assert (np.abs(grad).max() > 0) == (i >= module.first), i


@pytest.mark.parametrize("head", sorted(HEADS))
def test_computes_in_bfloat16_and_returns_float32(head):
    dims, maps = (8, 8, 8, 8), tuple(jnp.asarray(np.random.default_rng(i).standard_normal((2, 8 // 2**i, 8 // 2**i, 8))) for i in range(4))
    options = {"dims": dims, "strides": STAGED, "normalised": (False,) * 4, "options": NARROW.get(head)}
    exact = OnTrunk(head, 3, **options, rngs=nnx.Rngs(0))
    rough = OnTrunk(head, 3, **options, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(rough, nnx.Param))} == {jnp.dtype("float32")}
    outs = [nnx.jit(lambda head, maps: head(maps, train=False))(head, maps) for head in (exact, rough)]
    for a, b in zip(*map(jax.tree.leaves, outs), strict=True):
        assert b.dtype == jnp.float32
        assert float(jnp.abs(a - b).max()) < 0.1 * float(jnp.abs(a).max())  # bfloat16 has 8 bits, and some ten layers round

"""The published plain trunks, small: every way to run them gives the same numbers, and they come
back from a file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab import create_model, load_weights
from vitlab.models.registry import family_of, model_config
from vitlab.models.vit import ViT
from vitlab.models.vit_variants import VARIANTS
from vitlab.weights.load import parameters
from vitlab.weights.save import to_foreign

# One variant of each kind: together they have every value of every field.
KINDS = (
    "deit3_small_patch16",
    "dinov2_small_patch14",
    "dinov2_giant_reg4_patch14",
    "dinov3_small_plus_patch16",
    "clip_base_patch16",
    "siglip_base_patch16",
    "mae_base_patch16_in1k",
    "beit_base_patch16",
    "eva02_tiny_patch14",
    "eva02_clip_base_patch16",
    "aimv2_large_patch14",
    "pe_core_tiny_patch16_384",
)


def small(name, **fields):
    config = model_config(name)
    shrunk = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5, "mlp_dim": None, "num_classes": 5}
    shrunk |= {"image_size": (2 * config.patch_size, 3 * config.patch_size)}
    if config.pool == "map":
        shrunk["pool_heads"] = 4
    if config.pos_grid is not None:
        shrunk["pos_grid"] = (3, 3)
    return create_model(name, **(shrunk | fields))


def images(model, rows, columns):
    shape = (2, rows * model.config.patch_size, columns * model.config.patch_size, 3)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def unlike(state):
    """The state with other values everywhere, so that no branch is near zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: np.asarray(p) + 0.1 * rng.standard_normal(p.shape, np.float32), state)


@pytest.mark.parametrize("name", KINDS)
def test_every_way_to_run_a_trunk_gives_the_same_and_every_parameter_a_gradient(name):
    model, other = small(name), small(name, scan_blocks=True, remat="full")
    graphdef, params = nnx.split(model)
    params, other_def = unlike(params), nnx.graphdef(other)
    x = images(model, 3, 4)  # another size than the model's

    @jax.jit
    def run(params, x):
        def loss(params):
            return jnp.sum(jnp.sin(nnx.merge(graphdef, params, copy=True)(x)) ** 2)

        plain, looped = (nnx.merge(d, params, copy=True) for d in (graphdef, other_def))
        return plain(x), looped(x), plain.head(looped.pool(looped.features(x))), jax.grad(loss)(params)

    logits, looped, by_features, grads = jax.tree.map(np.asarray, run(params, x))
    scale = np.abs(logits).max()
    np.testing.assert_allclose(looped, logits, rtol=0, atol=1e-5 * scale)  # float32 sums in another order
    np.testing.assert_allclose(by_features, logits, rtol=0, atol=1e-5 * scale)
    flat = {".".join(map(str, path)): g[...] for path, g in nnx.to_flat_state(grads)}
    assert not [n for n, g in flat.items() if not (np.isfinite(g).all() and np.abs(g).max() > 0)]
    maps = jax.eval_shape(lambda: model.features(x))
    assert [m.shape for m in maps] == [(2, 3, 4, i.dim) for i in model.feature_info]


@pytest.mark.parametrize("name", KINDS)
def test_a_trunk_comes_back_from_the_names_that_it_is_saved_in(name):
    source, model = small(name, rngs=nnx.Rngs(3)), small(name)
    report = load_weights(model, to_foreign(source))
    assert not report.misfits and not report.zeros and report.name_map == "timm"
    for key, value in parameters(model).items():
        np.testing.assert_array_equal(value[...], parameters(source)[key][...], err_msg=key)


def test_a_trunk_without_classes_has_none_unless_it_is_given_some():
    fields = {"dim": 16, "depth": 1, "num_heads": 1, "image_size": 28, "pos_grid": None}
    assert create_model("dinov2_small_patch14", **fields).head is None
    assert create_model("dinov2_small_patch14", num_classes=3, **fields).head.out_features == 3
    assert model_config("clip_base_patch16").num_classes == 512 and model_config("vit_tiny_patch16").num_classes == 1000


def test_the_kinds_have_every_value_of_every_field_that_variants_have():
    def values(names):
        skipped = ("dim", "depth", "num_heads", "image_size", "num_classes", "preprocessing", "mlp_dim", "mlp_ratio", "patch_size")
        numbers = ("num_registers", "layer_scale", "rope_grid", "pool_heads", "pool_mlp_dim", "pos_grid", "drop_path_rate", "distilled")
        fields = [f for f in vars(VARIANTS["vit_tiny_patch16"]) if f not in (*skipped, *numbers) and not f.startswith("plugin")]
        return {(f, getattr(VARIANTS[n], f)) for n in names for f in fields}

    missing = values(VARIANTS) - values((*KINDS, "vit_tiny_patch16"))
    assert missing <= {("qkv_bias", False), ("pos_resize", "bicubic"), ("class_token", None)}


def test_all_variants_are_of_one_family():
    assert {family_of(name).model for name in VARIANTS} == {ViT}


@pytest.mark.parametrize(
    ("name", "fields", "rule"),
    [
        ("vit_tiny_patch16", {"pool": "cls", "class_token": False}, "class_token must not be False"),
        ("beit_base_patch16", {"num_registers": 2}, "rel_pos_bias must have one class token and no registers"),
        ("siglip_base_patch16", {"num_registers": 2}, "num_registers=2 must be 0"),
        ("dinov3_small_patch16", {"num_heads": 64}, "head_dim=6 must be a multiple of 4"),
    ],
)
def test_fields_that_cannot_work_together_are_refused_with_the_rule(name, fields, rule):
    with pytest.raises(ValueError, match=rule):
        model = create_model(name, depth=1, image_size=32, **fields)
        jax.eval_shape(lambda: model(images(model, 2, 2)))

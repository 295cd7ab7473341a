"""Tables of positions follow the grid, not the shape."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.conftest import size_of, small
from vitlab import create_model, load_weights
from vitlab.layers.initial import InitRngs
from vitlab.models.registry import family_of, list_models
from vitlab.weights.fit import fit
from vitlab.weights.load import WeightsMismatchError, parameters
from vitlab.weights.save import to_foreign

# Sample positions are rounded to 1e-6 in float32, and values of size one differ by a few between
# neighbours.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def _params(name: str) -> float:
    published = family_of(name).published[name]
    return (published.params or 0) / 1e6 or published.params_m or 1e9


SMALLEST = sorted({family_of(n).model: n for n in sorted(list_models(), key=_params, reverse=True)}.values())


def cubic(old: int, new: int) -> np.ndarray:
    """Returns weights [new, old] of bicubic interpolation with antialiasing along one axis.

    Keys 1981, a = -0.5.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    x = np.abs(centres[:, None] - np.arange(old)) / max(1, old / new)
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_as_many_tokens_of_another_grid_are_resampled():
    value = random(1, 1 + 14 * 14, 3)
    fitted, rule = fit("pos_embed", value, (1, 197, 3), grid=(7, 28))
    expected = np.einsum("ah,bw,hwd->abd", cubic(14, 7), cubic(14, 28), value[0, 1:].reshape(14, 14, 3)).reshape(196, 3)
    np.testing.assert_allclose(fitted[0, 1:], expected, **TOLERANCE)
    np.testing.assert_array_equal(fitted[0, 0], value[0, 0])
    assert rule == "14 x 14 to 7 x 28 positions, bicubic with antialiasing; the checkpoint's are taken to be a square"


def test_a_vit_of_equal_token_count_and_another_grid_gets_resampled_positions():
    fields = {"depth": 1, "dim": 16, "num_heads": 2, "num_classes": 3}
    source = to_foreign(create_model("vit_tiny_patch16", **fields))
    model = create_model("vit_tiny_patch16", image_size=(112, 448), **fields)
    assert load_weights(model, source).resampled == ("pos_embed",)
    expected = np.einsum("ah,bw,hwd->abd", cubic(14, 7), cubic(14, 28), source["pos_embed"][0, 1:].reshape(14, 14, 16))
    np.testing.assert_allclose(model.pos_embed[...][0, 1:], expected.reshape(196, 16), **TOLERANCE)


def test_the_declared_grid_decides():
    value = random(1, 16, 3)
    fitted, rule = fit("pos_embed", value, (1, 16, 3), grid=(2, 8), declared=(2, 8))
    np.testing.assert_array_equal(fitted, value)
    assert not rule
    _, rule = fit("pos_embed", value, (1, 16, 3), grid=(4, 4), declared=(2, 8))
    assert rule == "2 x 8 to 4 x 4 positions, bicubic with antialiasing"


def test_a_number_of_tokens_that_is_no_square_is_of_the_models_grid():
    value = random(1, 1 + 12, 3)
    fitted, rule = fit("pos_embed", value, (1, 13, 3), grid=(3, 4))
    np.testing.assert_array_equal(fitted, value)
    assert not rule


def test_a_position_map_follows_the_grid_bilinearly():
    value = random(1, 16, 3)
    fitted, rule = fit("pos_map", value, (1, 2, 8, 3))
    assert fitted.shape == (1, 2, 8, 3) and rule.startswith("4 x 4 to 2 x 8 positions, bilinear")
    np.testing.assert_allclose(fitted[0, 0, 0], value[0].reshape(4, 4, 3)[:2, 0].mean(0), **TOLERANCE)  # between the first two rows
    same, rule = fit("pos_map", value, (1, 4, 4, 3))
    np.testing.assert_array_equal(same.reshape(1, 16, 3), value)
    assert not rule


@pytest.mark.parametrize(
    ("tokens", "grid", "declared", "reason"),
    [
        (0, (4, 4), None, "no grid"),
        (1, (4, 4), None, "no grid"),
        (2, (4, 4), None, "no grid"),  # the class token and one patch
        (8, (4, 4), None, "the grid is unknown"),
        (17, (4, 4), (3, 5), "that the checkpoint declares"),
    ],
)
def test_positions_of_no_grid_are_refused_with_the_reason(tokens, grid, declared, reason):
    with pytest.raises(ValueError, match=reason):
        fit("pos_embed", random(1, tokens, 3), (1, 17, 3), grid=grid, declared=declared)


@pytest.mark.parametrize("shape", [(17, 3), (3,), (2, 17, 3), (1, 17, 4), (1, 17, 3, 1)])
def test_positions_of_another_form_are_refused(shape):
    with pytest.raises(ValueError, match=r"checkpoint .*, model \(1, 17, 3\)"):
        fit("pos_embed", random(*shape), (1, 17, 3), grid=(4, 4))


@pytest.mark.parametrize("leaf", ["rel_pos_bias", "rpb", "small_bias", "large_bias"])
def test_tables_of_relative_positions_are_resampled(leaf):
    value = random(2, 13, 13)
    fitted, rule = fit(f"a.{leaf}", value, (2, 15, 15))
    np.testing.assert_allclose(fitted, np.einsum("ay,bx,nyx->nab", cubic(13, 15), cubic(13, 15), value), **TOLERANCE)
    assert rule == "2 x 13 x 13 to 2 x 15 x 15, bicubic with antialiasing"
    with pytest.raises(ValueError, match="checkpoint"):
        fit(f"a.{leaf}", value, (3, 15, 15))  # heads are not resampled


def test_a_flat_table_of_relative_positions_is_the_models_or_else_a_square():
    value = random(2, 3 * 27)
    np.testing.assert_array_equal(fit("a.rel_pos_bias", value, (2, 3, 27))[0], value.reshape(2, 3, 27))
    np.testing.assert_array_equal(fit("a.rel_pos_bias", value, (2, 9, 9))[0], value.reshape(2, 9, 9))
    assert fit("a.rel_pos_bias", value, (2, 7, 7))[1] == "2 x 9 x 9 to 2 x 7 x 7, bicubic with antialiasing"
    with pytest.raises(ValueError, match="neither 7 x 7 nor a square"):
        fit("a.rel_pos_bias", random(2, 15), (2, 7, 7))


def test_a_table_of_distances_is_resampled_as_its_symmetric_whole():
    value = random(2, 4, 4)
    fitted, rule = fit("a.attention_biases", value, (2, 5, 5))
    whole = np.pad(value, ((0, 0), (3, 0), (3, 0)), "reflect")
    expected = np.einsum("ay,bx,nyx->nab", cubic(7, 9), cubic(7, 9), whole)[:, 4:, 4:]
    np.testing.assert_allclose(fitted, expected, **TOLERANCE)
    assert rule.endswith("mirrored, bicubic with antialiasing")


def test_keys_of_relative_positions_lines_and_filters_are_resampled():
    keys = random(11, 4)
    np.testing.assert_allclose(fit("a.height_rel", keys, (15, 4))[0], cubic(11, 15) @ keys, **TOLERANCE)
    lines = random(2, 3, 4)
    np.testing.assert_allclose(fit("a.ah_bias", lines, (2, 3, 8))[0][..., 1], 0.75 * lines[..., 0] + 0.25 * lines[..., 1], **TOLERANCE)
    spectrum = random(4, 3, 2, 2)
    expected = np.einsum("ah,bw,hwcr->abcr", cubic(4, 6), cubic(3, 4), spectrum)
    np.testing.assert_allclose(fit("a.complex_weight", spectrum, (6, 4, 2, 2))[0], expected, **TOLERANCE)


# Parameters, by family, that multiply all tokens or are added to whole maps: they have one size.
FIXED = {"sparsifiner_small": "proj_n", "terminator_cifar100": "bias_p", "morpmamba_houston": "tokens.spectral_dilation.kernel"}


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_loads_weights_of_another_image_size(name):
    """Checks that parameters which depend on the image size are resampled and reported.

    The strict load succeeds.
    """
    size = size_of(name)
    wide = (2 * size, 2 * size) if name.startswith(("terminator", "morpmamba")) else (size, 2 * size)  # it takes squares
    source, model = (small(name, image_size=side, rngs=InitRngs(None)) for side in ((size, size), wide))
    before, after = ({k: v.shape for k, v in parameters(m).items()} for m in (source, model))
    if fixed := FIXED.get(name):
        with pytest.raises(WeightsMismatchError, match=f"{fixed}: checkpoint"):
            load_weights(model, to_foreign(source))
        return
    report = load_weights(model, to_foreign(source))
    assert {n for n in after if after[n] != before[n]} <= set(report.resampled)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("swin_tiny", {"window_size": 7}, {"window_size": 8}),
        ("nat_mini", {"kernel_size": 5}, {"kernel_size": 7}),
        ("efficientvit_m0", {"window_size": 4}, {"window_size": 7}),
        ("halonet_h1", {"block_size": 8}, {"block_size": 4}),
    ],
)
def test_weights_of_another_window_are_resampled(name, old, new):
    size = size_of(name)
    source, model = (small(name, image_size=size, rngs=InitRngs(None), **fields) for fields in (old, new))
    report = load_weights(model, to_foreign(source))
    assert report.resampled and set(report.rules) == set(report.resampled)


def test_a_convolution_of_as_many_weights_and_another_window_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint \(5, 3, 2, 8\), model \(4, 4, 3, 5\)"):
        fit("a.kernel", random(5, 3, 2, 8), (4, 4, 3, 5))
    np.testing.assert_array_equal(fit("a.kernel", random(5, 3, 1, 1), (3, 5))[0], random(5, 3).T)


@pytest.mark.parametrize("kind", [np.complex64, np.bool_, np.int8, np.int64, object, np.str_])
def test_only_real_floating_point_numbers_are_weights(kind):
    with pytest.raises(ValueError, match="numbers of type"):
        fit("a.bias", np.ones(3).astype(kind), (3,))


@pytest.mark.parametrize("kind", [np.float64, np.float16, jnp.bfloat16])
def test_other_floating_point_numbers_become_float32(kind):
    assert fit("a.bias", np.ones(3).astype(kind), (3,))[0].dtype == jnp.float32

"""Every implementation of attention against the definition, and that against the paper."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import (
    IMPLEMENTATIONS,
    QKV_IMPLEMENTATIONS,
    UnsupportedError,
    attention,
    attention_qkv,
    canonical,
    gpu,
    pallas_tpu,
)
from pallas_kernels.attention.shapes import MODELS, NASTY, Shape
from pallas_kernels.attention.tiles import Layout
from pallas_kernels.target import assume
from tests.processes import run_on_four_devices

FEW = ["vit_small_patch16", "deit_tiny_distilled"]  # models that an interpreter runs in a second
SHAPES = {**{name: MODELS[name].downsized() for name in FEW}, **NASTY}

# Largest deviation allowed, relative to the largest value of the definition. Float32: sums of up to
# 600 terms in another order; 20 half units in the last place were seen. Bfloat16: three roundings
# (weights or their gradient, operand, result) of half a unit.
TOLERANCE = {"float32": 64 * 2**-24, "bfloat16": 3 * 2**-8}


def kernel_or_skip(name: str, arrays, options, table=IMPLEMENTATIONS):
    """Returns the implementation, interpreted; skips with the predicate's reason."""
    interpret = {"interpret": True} if name.startswith("pallas") else {}
    if (reason := table[name].unsupported_reason(*arrays, **canonical(*arrays, **options), **interpret)) is not None:
        pytest.skip(f"{name}: {reason}")
    return lambda *arrays, **options: table[name].fn(*arrays, **canonical(*arrays, **options), **interpret)


def value_and_grads(fn, arrays, options):
    """Returns results and their pull-back to the arrays and the bias, compiled as one."""
    bias, rest = options["bias"], {name: x for name, x in options.items() if name != "bias"}

    @jax.jit
    def run(arrays, bias):
        out, pull_back = jax.vjp(lambda arrays, bias: fn(*arrays, bias=bias, **rest), arrays, bias)
        return out, pull_back(jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape, x.dtype), out))

    return run(arrays, bias)


def deviation(ours, theirs) -> float:
    """Returns the largest deviation over all arrays, in units of each array's largest value.

    For an array that is mere rounding of zero, the unit is the largest value of all arrays.
    """
    ours, theirs = ([np.asarray(x, np.float64) for x in jax.tree.leaves(arrays)] for arrays in (ours, theirs))
    largest = [np.abs(x).max() for x in theirs]
    units = [x if x > 1e-6 * max(largest) else max(largest) or 1 for x in largest]
    return max(float(np.abs(a - b).max()) / float(unit) for a, b, unit in zip(ours, theirs, units, strict=True))


@functools.cache
def expected(name: str):
    arrays, options = SHAPES[name].arguments()
    return value_and_grads(functools.partial(attention, implementation="reference"), arrays, options)


def by_hand(query, key, value, *, bias, mask, is_causal):
    """Attention of one query of one head at a time, in float64, and the logsumexp."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    (b, n, heads, head_dim), m = q.shape, k.shape[1]
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias), (b, heads, n, m))
    mask = np.broadcast_to(True if mask is None else np.asarray(mask), (b, heads, n, m))
    out, logs = np.zeros_like(q), np.full((b, n, heads), -np.inf)
    for i, query_at, head in np.ndindex(b, n, heads):
        keys = np.flatnonzero(mask[i, head, query_at] & (np.arange(m) <= (query_at if is_causal else m)))
        if keys.size:
            kv_head = head // (heads // k.shape[2])
            weights = np.exp(k[i, keys, kv_head] @ q[i, query_at, head] * head_dim**-0.5 + bias[i, head, query_at, keys])
            out[i, query_at, head] = weights @ v[i, keys, kv_head] / weights.sum()
            logs[i, query_at, head] = np.log(weights.sum())
    return out, logs


@pytest.mark.parametrize("name", sorted(NASTY))
def test_the_definition_is_the_paper_s_formula_query_by_query(name):
    arrays, options = NASTY[name].arguments()
    out, logs = attention(*arrays, **options, return_logsumexp=True, implementation="reference")
    values, logarithms = by_hand(*arrays, **options)
    assert deviation(out, values) < TOLERANCE["float32"]
    np.testing.assert_allclose(logs, logarithms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("which", [name for name in IMPLEMENTATIONS if name != "reference"])
def test_values_and_gradients_are_those_of_the_definition(which, name):
    arrays, options = SHAPES[name].arguments()
    ours = value_and_grads(kernel_or_skip(which, arrays, options), arrays, options)
    assert deviation(ours, expected(name)) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["vit_small_patch16", "more_keys_than_queries", "masked_keys", "causal"])
@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_bfloat16_is_near_the_definition_in_float64(which, name):
    arrays, options = SHAPES[name].arguments(jnp.bfloat16)
    ours = value_and_grads(kernel_or_skip(which, arrays, options), arrays, options)
    assert ours[0].dtype == ours[1][0][0].dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(x, np.float64)) for x in arrays)
        rest = {name: x for name, x in options.items() if name != "bias"}
        fn = functools.partial(attention, implementation="reference", **rest)
        cotangent = jax.random.normal(jax.random.key(9), wide[0].shape, jnp.bfloat16)
        out, pull_back = jax.vjp(fn, *wide)
        exact = out, pull_back(jnp.asarray(np.asarray(cotangent, np.float64)))
    assert out.dtype == jnp.float64
    assert deviation(ours, exact) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("name", ["causal", "masked_keys", "one_token", "five_heads_of_the_projection"])
@pytest.mark.parametrize("which", list(QKV_IMPLEMENTATIONS))
def test_the_projection_is_read_as_its_three_parts(which, name):
    shape = NASTY.get(name, Shape(size=(2, 11, 5, 32)))
    arrays, options = shape.arguments()
    parts = value_and_grads(functools.partial(attention, implementation="reference"), arrays, options)
    qkv = jnp.stack(arrays, 2)
    out, (grads, _) = value_and_grads(kernel_or_skip(which, (qkv,), options, QKV_IMPLEMENTATIONS), (qkv,), options)
    ours = out, tuple(grads[0][:, :, i] for i in range(3))
    assert deviation(ours, (parts[0], parts[1][0])) < TOLERANCE["float32"]


@pytest.mark.parametrize("shape", [Shape(size=(4, 11, 3, 64)), Shape(size=(2, 300, 5, 32), is_causal=True)])
@pytest.mark.parametrize("which", list(QKV_IMPLEMENTATIONS))
def test_the_projection_s_bias_may_be_added_by_the_operator(which, shape, monkeypatch):
    monkeypatch.setattr("pallas_kernels.attention.tiles.QUERIES", 128)
    arrays, options = shape.arguments()
    qkv, qkv_bias = jnp.stack(arrays, 2), jax.random.normal(jax.random.key(5), (3, *shape.size[2:]))
    kernel_or_skip(which, (qkv,), options, QKV_IMPLEMENTATIONS)
    interpret = {"interpret": True} if which.startswith("pallas") else {}
    given = canonical(qkv, **options)

    def grads(fn):
        out, pull_back = jax.vjp(fn, qkv, qkv_bias)
        return out, pull_back(jax.random.normal(jax.random.key(9), out.shape))

    ours = jax.jit(lambda: grads(lambda qkv, qkv_bias: QKV_IMPLEMENTATIONS[which].fn(qkv, qkv_bias, **given, **interpret)))()
    theirs = grads(lambda qkv, qkv_bias: attention_qkv(qkv + qkv_bias, **options, implementation="reference"))
    assert deviation(ours, theirs) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["causal", "blind_queries", "bias_of_images"])
def test_the_logarithms_and_their_gradients_are_those_of_the_definition(name):
    arrays, options = NASTY[name].arguments()

    def run(implementation):
        def fn(*arrays, **options):
            out, logs = attention(*arrays, **options, return_logsumexp=True, implementation=implementation)
            return out, jnp.where(jnp.isfinite(logs), logs, 0)

        return value_and_grads(fn, arrays, options)

    assert deviation(run("xla"), run("reference")) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", sorted(NASTY))
def test_xla_on_any_other_platform_agrees_with_the_definition(name):
    arrays, options = NASTY[name].arguments()
    with assume("any"):
        ours = value_and_grads(functools.partial(attention, implementation="xla"), arrays, options)
    assert deviation(ours, expected(name)) < TOLERANCE["float32"]


@pytest.mark.parametrize("platform", ["cpu", "any"])
def test_xla_gives_zeros_to_a_query_that_sees_no_key_on_every_platform(platform):
    arrays, options = NASTY["blind_queries"].arguments()
    with assume(platform):
        out = attention(*arrays, **options, implementation="xla")
    assert (np.asarray(out)[:, ::3] == 0).all() and (np.asarray(out)[:, 1] != 0).all()


@pytest.mark.parametrize("which", ["xla", "reference"])
def test_what_hidden_keys_hold_does_not_matter(which):
    (query, key, value), options = NASTY["masked_keys"].arguments()
    hidden = ~options["mask"][:, 0, 0, :, None, None]
    key_of_nan, value_of_nan = (jnp.where(hidden, jnp.nan, x) for x in (key, value))
    expected = attention(query, key, value, **options, implementation=which)
    np.testing.assert_array_equal(attention(query, key_of_nan, value_of_nan, **options, implementation=which), expected)
    qkv = attention_qkv(jnp.stack([query, key_of_nan, value_of_nan], 2), **options, implementation=which)
    np.testing.assert_array_equal(qkv, expected)


def test_the_order_of_preference_is_told_with_reasons_and_a_cpu_takes_xla(caplog):
    arrays, _ = NASTY["one_token"].arguments()
    assert list(IMPLEMENTATIONS) == list(QKV_IMPLEMENTATIONS) == ["pallas_tpu", "cudnn", "xla", "reference"]
    assert (attention(*arrays) == attention(*arrays, implementation="xla")).all()
    with pytest.raises(UnsupportedError, match="it needs a TPU, not cpu"):
        attention(*arrays, implementation="pallas_tpu")
    with pytest.raises(UnsupportedError, match="it needs an NVIDIA GPU, not cpu"):
        attention(*arrays, implementation="cudnn")


unchecked = inspect.unwrap  # without the check of annotations, as for users

BAD = {
    "key and value differ": ((1, 4, 2, 8), (1, 5, 2, 8), (1, 4, 2, 8), {}, "must be"),
    "other images": ((1, 4, 2, 8), (2, 4, 2, 8), (2, 4, 2, 8), {}, "agree in images"),
    "heads in no whole groups": ((1, 4, 3, 8), (1, 4, 2, 8), (1, 4, 2, 8), {}, "multiple of kv_heads=2"),
    "bias of another length": ((1, 4, 2, 8),) * 3 + ({"bias": jnp.zeros((2, 4, 5))}, r"bias.shape=\(2, 4, 5\)"),
    "bias of one axis": ((1, 4, 2, 8),) * 3 + ({"bias": jnp.zeros(4)}, "2 to 4 axes"),
    "mask of numbers": ((1, 4, 2, 8),) * 3 + ({"mask": jnp.zeros((4, 4))}, "must be bool"),
    "mask of other heads": ((1, 4, 2, 8),) * 3 + ({"mask": jnp.ones((3, 4, 4), bool)}, r"mask.shape=\(3, 4, 4\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_do_not_fit_are_refused(case):
    *shapes, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        unchecked(attention)(*map(jnp.zeros, shapes), **options)


def test_arrays_of_several_dtypes_and_a_projection_of_other_axes_are_refused():
    x = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(ValueError, match="must be one"):
        unchecked(attention)(x, x.astype(jnp.bfloat16), x)
    with pytest.raises(ValueError, match=r"qkv_bias.shape=\(3, 2, 4\) must be \(3, 2, 8\)"):
        unchecked(attention_qkv)(jnp.zeros((1, 4, 3, 2, 8)), qkv_bias=jnp.zeros((3, 2, 4)))
    with pytest.raises(ValueError, match=r"must be \[b, n, 3, heads, head_dim\]"):
        unchecked(attention_qkv)(jnp.zeros((1, 4, 2, 2, 8)))


def test_one_head_of_keys_is_shared_by_all_queries():
    (query, key, value), _ = NASTY["one_key_head"].arguments()
    wide = [jnp.broadcast_to(x, query.shape) for x in (key, value)]
    np.testing.assert_allclose(attention(query, key, value), attention(query, *wide), rtol=1e-6, atol=1e-6)


def tpu_reason(shape: Shape, **options) -> str | None:
    """Returns the reason of the predicate on a core with 56 MiB of VMEM."""
    arrays, rest = shape.arguments(jnp.bfloat16)
    return pallas_tpu.unsupported_reason(*arrays, **canonical(*arrays, **rest, **options), interpret=True)


def test_the_tpu_kernel_takes_a_thousand_tokens_of_a_wide_model_and_says_what_it_does_not_take():
    assert tpu_reason(Shape(size=(1, 1024, 6, 64))) is None
    assert "MiB of VMEM" in (tpu_reason(Shape(size=(1, 8192, 16, 64))) or "")
    assert tpu_reason(NASTY["one_query"]) == "1 queries or 50 keys do not fill a register's 8 rows"
    assert tpu_reason(NASTY["bias_of_heads"]) == "it takes no bias"
    assert "hides keys from all queries" in (tpu_reason(NASTY["masked_pairs"]) or "")
    assert tpu_reason(NASTY["causal"], return_logsumexp=True) == "it does not return the logsumexp"


def test_the_kernel_may_loop_over_heads_and_tiles_of_queries(monkeypatch):
    monkeypatch.setattr("pallas_kernels.attention.tiles.UNROLLED", 0)
    monkeypatch.setattr("pallas_kernels.attention.tiles.QUERIES", 128)
    shape = Shape(size=(2, 200, 4, 64), num_keys=24, is_causal=True)
    arrays, options = shape.arguments()
    layout = Layout.of(arrays, is_causal=True)
    assert layout.loops and [tile.stop for tile in layout.tiles] == [128, 200]
    ours = value_and_grads(kernel_or_skip("pallas_tpu", arrays, options), arrays, options)
    theirs = value_and_grads(functools.partial(attention, implementation="reference"), arrays, options)
    assert deviation(ours, theirs) < TOLERANCE["float32"]


def cudnn_reason(dtype, **changes) -> str | None:
    arrays, options = dataclasses.replace(Shape(size=(2, 9, 2, 64)), **changes).arguments(dtype)
    options = canonical(*arrays, **options)
    return gpu.unsupported_arrays(*arrays, bias=options["bias"], mask=options["mask"], return_logsumexp=False)


def test_cudnn_is_named_for_what_it_can_run_and_its_reasons_told():
    assert cudnn_reason(jnp.bfloat16) is None
    assert cudnn_reason(jnp.float16, num_keys=4, is_causal=True) is None
    assert cudnn_reason(jnp.float32) == "dtype float32 is not one of float16, bfloat16"
    assert cudnn_reason(jnp.bfloat16, size=(1, 4, 2, 60)) == "head_dim=60 is not a multiple of 8 up to 128"
    assert cudnn_reason(jnp.bfloat16, size=(1, 4, 2, 136)) == "head_dim=136 is not a multiple of 8 up to 128"
    assert "without bias and mask" in (cudnn_reason(jnp.bfloat16, mask="keys") or "")


@pytest.mark.parametrize(("n", "m"), [(9, 9), (8, 9), (9, 8), (8, 8)])
def test_odd_lengths_reach_cudnn_even_and_with_the_true_lengths(monkeypatch, n, m):
    seen = []

    def as_cudnn(query, key, value, *, implementation, **options):
        assert implementation == "cudnn" and query.shape[1] % 2 == key.shape[1] % 2 == 0
        seen.append(query.shape[1])
        return dot_product_attention(query, key, value, implementation="xla", **options)

    dot_product_attention = jax.nn.dot_product_attention
    arrays, options = Shape(size=(2, n, 2, 8), num_keys=m).arguments()
    expected = attention(*arrays, implementation="reference")
    monkeypatch.setattr(jax.nn, "dot_product_attention", as_cudnn)
    out = gpu.attention(*arrays, **canonical(*arrays, **options))
    assert seen == [n + n % 2] and deviation(out, expected) < TOLERANCE["float32"]


SPLIT = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType
    from pallas_kernels.attention import canonical, pallas_tpu

    # The interpreter of kernels does not pass the check of what varies, so the types alone are looked at.
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    fns = {
        "whole": lambda qkv, mask: pallas_tpu.attention_qkv(qkv, qkv[0, 0], **canonical(qkv, mask=mask)),
        "parts": lambda qkv, mask: pallas_tpu.attention(*(qkv[:, :, i] for i in range(3)), **canonical(qkv, mask=mask)),
    }
    for heads, share in (4, 2), (3, 3):
        qkv, mask = jnp.ones((4, 9, 3, heads, 32)), jnp.ones((1, 9), bool)
        for name, fn in fns.items():
            with jax.set_mesh(mesh):
                grads = jax.make_jaxpr(jax.grad(lambda qkv: fn(qkv, mask).sum()))(qkv)
            width = share * 32 * (3 if name == "whole" else 1)
            text = str(grads)
            assert "shard_map" in text and f"f32[2,9,{width}]" in text, text
            print("passed")
"""


def test_devices_share_the_images_and_where_they_divide_the_heads():
    assert run_on_four_devices(SPLIT).stdout.count("passed") == 4

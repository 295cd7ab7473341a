"""Every implementation of window attention against the definition, and it against the paper."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pallas_kernels.window_attention import (
    IMPLEMENTATIONS,
    QKV_IMPLEMENTATIONS,
    UnsupportedError,
    canonical,
    expand_bias,
    window_attention,
    window_attention_qkv,
)
from pallas_kernels.window_attention.shapes import MODELS, NASTY, Shape
from tests.processes import run_on_four_devices

SHAPES = {**{name: shape.downsized() for name, shape in MODELS.items()}, **NASTY}
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]

# Largest deviation allowed, relative to the largest value of the reference. Float32: sums of up to
# 144 terms in another order; 20 half units in the last place were seen. Narrow dtypes: three
# roundings (weights or their gradient, operand, result) of half a unit.
TOLERANCE = {"float32": 64 * 2**-24, "bfloat16": 3 * 2**-8, "float16": 3 * 2**-11}


def implementation(name: str, arrays, options, table=IMPLEMENTATIONS):
    """Returns the implementation, with kernels interpreted; skips with the predicate's reason."""
    interpret = {"interpret": True} if name.startswith(("pallas", "triton")) else {}
    if (reason := table[name].unsupported_reason(*arrays, **canonical(arrays[0], **options), **interpret)) is not None:
        pytest.skip(f"{name}: {reason}")
    return lambda *arrays, **options: table[name].fn(*arrays, **canonical(arrays[0], **options), **interpret)


def by_hand(query, key, value, *, window_size, shift, grid, bias, mask):
    """Window attention window by window, in float64.

    Pad, roll, cut into windows, lower the logits across the seam by 100, attend.
    """
    (rows, cols), (down, right) = ((x, x) if isinstance(x, int) else x for x in (window_size, shift))
    b, h, w, heads, d = query.shape
    tall, wide = -(-h // rows) * rows, -(-w // cols) * cols
    token = np.full((tall, wide), -1)
    token[:h, :w] = np.arange(h * w).reshape(h, w)
    side = (np.arange(tall) < down)[:, None] * 2 + (np.arange(wide) < right)
    token, side = (np.roll(x, (-down, -right), (0, 1)) for x in (token, side))
    q, k, v = (np.asarray(x, np.float64).reshape(b, h * w, heads, d) for x in (query, key, value))
    out = np.zeros_like(q)
    for i, j in np.ndindex(tall // rows, wide // cols):
        cut = np.s_[i :: tall // rows, j :: wide // cols] if grid else np.s_[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
        tokens, sides = token[cut].reshape(-1), side[cut].reshape(-1)
        tokens, sides = tokens[tokens >= 0], sides[tokens >= 0]
        slots = np.flatnonzero(token[cut].reshape(-1) >= 0)
        logits = np.einsum("bqhd,bkhd->bhqk", q[:, tokens], k[:, tokens]) * d**-0.5 - 100.0 * (sides[:, None] != sides)
        logits += 0 if bias is None else np.asarray(bias, np.float64)[:, slots[:, None], slots]
        seen = np.ones((b, 1, 1, len(slots))) if mask is None else np.asarray(mask).reshape(b, 1, 1, h * w)[..., tokens]
        weights = np.exp(logits - logits.max(-1, keepdims=True)) * seen
        out[:, tokens] = np.einsum("bhqk,bkhd->bqhd", weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300), v[:, tokens])
    return out.reshape(query.shape)


def deviation(ours, theirs) -> float:
    """Returns the largest deviation over all arrays, in units of each array's largest value.

    For an array that is mere rounding of zero, the unit is the largest value of all arrays.
    """
    ours, theirs = ([np.asarray(x, np.float64) for x in jax.tree.leaves(arrays)] for arrays in (ours, theirs))
    largest = [np.abs(x).max() for x in theirs]
    units = [x if x > 1e-6 * max(largest) else max(largest) for x in largest]
    return max(np.abs(a - b).max() / unit for a, b, unit in zip(ours, theirs, units, strict=True))


def value_and_grads(fn, arrays, options, cotangent=None):
    """Returns the result and its pull-back to query, key, value and bias, compiled as one."""
    bias, options = options["bias"], {name: x for name, x in options.items() if name != "bias"}
    cotangent = jax.random.normal(jax.random.key(9), arrays[0].shape, arrays[0].dtype) if cotangent is None else cotangent

    @jax.jit
    def run(arrays, bias):
        out, pull_back = jax.vjp(lambda arrays, bias: fn(*arrays, bias=bias, **options), arrays, bias)
        return out, pull_back(cotangent)

    return run(arrays, bias)


@functools.cache
def expected(name: str):
    arrays, options = SHAPES[name].arguments()
    return value_and_grads(functools.partial(window_attention, implementation="reference"), arrays, options)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_definition_equals_the_roll_and_partition_of_the_paper(name):
    arrays, options = SHAPES[name].arguments()
    bias = canonical(arrays[0], **options)["bias"]
    out = by_hand(*arrays, **{**options, "bias": bias})
    assert deviation(window_attention(*arrays, **options, implementation="reference"), out) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["masked_and_shifted", "overhang_shifted"])
def test_the_gradients_of_the_definition_are_those_of_its_values(name):
    arrays, options = SHAPES[name].arguments()
    rest = {name: x for name, x in options.items() if name != "bias"}
    fn = functools.partial(window_attention, implementation="reference", **rest)
    check_grads(
        lambda arrays, bias: fn(*map(jnp.asarray, arrays), bias=jnp.asarray(bias)),
        (arrays, options["bias"]),
        order=1,
        modes=["rev"],
        atol=2e-2,
        rtol=2e-2,
        eps=1e-2,
    )


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("which", FAST)
def test_values_and_gradients_are_those_of_the_definition(which, name):
    arrays, options = SHAPES[name].arguments()
    ours = value_and_grads(implementation(which, arrays, options), arrays, options)
    assert deviation(ours, expected(name)) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["swin_tiny_stage3_shifted", "maxvit_tiny_stage3_grid", "overhang_shifted", "no_bias_shifted_and_masked"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_narrow_dtypes_are_near_the_definition_in_float64(which, dtype, name):
    arrays, options = SHAPES[name].arguments(jnp.dtype(dtype))
    cotangent = jax.random.normal(jax.random.key(9), arrays[0].shape, arrays[0].dtype)
    ours = value_and_grads(implementation(which, arrays, options), arrays, options, cotangent)
    assert ours[0].dtype == ours[1][0][0].dtype == jnp.dtype(dtype)
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(x, np.float64)) for x in (*arrays, cotangent))
        bias = None if options["bias"] is None else jnp.asarray(np.asarray(options["bias"], np.float64))
        fn = functools.partial(window_attention, implementation="reference")
        exact = value_and_grads(fn, wide[:3], {**options, "bias": bias}, wide[3])
    assert exact[0].dtype == jnp.float64
    assert deviation(ours, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["masked_and_shifted", "overhang", "no_bias", "five_heads", "maxvit_tiny_grid"])
@pytest.mark.parametrize("which", list(QKV_IMPLEMENTATIONS))
def test_the_fused_projection_gives_the_same(which, name):
    arrays, options = SHAPES[name].arguments()
    qkv = jnp.stack(arrays, 3)
    fn = implementation(which, (qkv,), options, QKV_IMPLEMENTATIONS)
    cotangent = jax.random.normal(jax.random.key(9), arrays[0].shape)
    out, (d_qkv, d_bias) = value_and_grads(lambda qkv, **options: fn(qkv, **options), (qkv,), options, cotangent)
    d_arrays = tuple(d_qkv[0][:, :, :, i] for i in range(3))
    assert deviation((out, (d_arrays, d_bias)), expected(name)) < TOLERANCE["float32"]


@pytest.mark.parametrize("which", [None, *IMPLEMENTATIONS])
def test_the_operator_reaches_the_implementation(which):
    arrays, options = SHAPES["overhang_shifted"].arguments()
    given = canonical(arrays[0], **options)
    if which is not None and (reason := IMPLEMENTATIONS[which].unsupported_reason(*arrays, **given)) is not None:
        with pytest.raises(UnsupportedError, match="cannot run here") as caught:
            window_attention(*arrays, **options, implementation=which)
        assert reason in str(caught.value)
        return
    out = window_attention(*arrays, **options, implementation=which)
    assert deviation(out, expected("overhang_shifted")[0]) < TOLERANCE["float32"]
    fused = window_attention_qkv(jnp.stack(arrays, 3), **options, implementation=which)
    np.testing.assert_array_equal(fused, out)


def test_both_tables_name_the_same_implementations_in_the_same_order():
    assert list(IMPLEMENTATIONS) == list(QKV_IMPLEMENTATIONS)


def test_the_table_of_relative_positions_is_read_at_query_minus_key():
    rows, cols = 3, 2
    table = jnp.arange(5 * 3.0).reshape(1, 5, 3)
    at = np.stack(np.mgrid[:rows, :cols], -1).reshape(-1, 2)
    delta = at[:, None] - at[None] + (rows - 1, cols - 1)
    np.testing.assert_array_equal(expand_bias(table, (rows, cols))[0], table[0][delta[..., 0], delta[..., 1]])


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_a_window_as_large_as_the_map_is_dense_attention(which):
    arrays, options = Shape(size=(2, 5, 4, 2, 32), window_size=(5, 4), bias=None).arguments()
    ours = value_and_grads(implementation(which, arrays, options), arrays, options)

    def dense(*arrays, **_):
        q, k, v = (x.reshape(2, 20, 2, 32) for x in arrays)
        return jax.nn.dot_product_attention(q, k, v).reshape(2, 5, 4, 2, 32)

    assert deviation(ours, value_and_grads(dense, arrays, options)) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["masked_and_shifted", "no_bias_shifted_and_masked", "overhang_of_the_grid"])
@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_what_the_mask_hides_may_be_anything(which, name):
    arrays, options = SHAPES[name].arguments()
    fn, hidden = implementation(which, arrays, options), ~options["mask"][..., None, None]
    query, key, value = arrays
    clean = value_and_grads(fn, (query, *(jnp.where(hidden, 0, x) for x in (key, value))), options)
    poisoned = value_and_grads(fn, (query, *(jnp.where(hidden, jnp.nan, x) for x in (key, value))), options)
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(poisoned))
    for grad in poisoned[1][0][1:]:
        assert not np.asarray(jnp.where(hidden, grad, 0)).any()


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_a_query_that_sees_no_key_gets_zeros_and_gives_no_gradient(which):
    arrays, options = SHAPES["masked_and_shifted"].arguments()
    options |= {"shift": 0, "mask": options["mask"].at[0, :4, :4].set(False)}
    out, (grads, d_bias) = value_and_grads(implementation(which, arrays, options), arrays, options)
    for x in (out, *grads):
        assert not np.asarray(x[0, :4, :4]).any()
        assert np.asarray(x[0, 4:, 4:]).any()
    assert np.isfinite(d_bias).all()


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_one_image_does_not_reach_another(which):
    arrays, options = SHAPES["seventeen_images"].arguments()
    fn = implementation(which, arrays, options)
    out = jax.jit(lambda arrays: fn(*arrays, **options))(arrays)
    spoilt = jax.jit(lambda arrays: fn(*arrays, **options))(tuple(x.at[3].set(jnp.nan) for x in arrays))
    np.testing.assert_array_equal(np.delete(spoilt, 3, 0), np.delete(out, 3, 0))


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_large_logits_do_not_overflow(which):
    arrays, options = SHAPES["five_heads"].arguments()
    query, key, value = arrays
    options |= {"bias": options["bias"] * 1e4}
    out, grads = value_and_grads(implementation(which, arrays, options), (query * 100, key * 100, value), options)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, grads)))


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_the_scale_is_a_factor_on_the_product(which):
    arrays, options = SHAPES["no_bias"].arguments()
    fn = implementation(which, arrays, options)
    query, key, value = arrays
    np.testing.assert_allclose(
        fn(query, key, value, **options, scale=0.5), fn(query * 0.5 * 8, key, value, **options), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_two_runs_are_bit_equal(which):
    arrays, options = SHAPES["overhang_shifted"].arguments(jnp.bfloat16)
    fn = implementation(which, arrays, options)
    jax.tree.map(np.testing.assert_array_equal, *(value_and_grads(fn, arrays, options) for _ in range(2)))


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_vmap_and_remat_change_nothing(which):
    arrays, options = SHAPES["masked_and_shifted"].arguments()
    fn, options = implementation(which, arrays, options), dict(options)
    mask, bias = options.pop("mask"), options.pop("bias")

    def one(arrays, bias, mask):
        run = jax.checkpoint(lambda *arrays, bias: fn(*arrays, bias=bias, mask=mask, **options))
        return jax.value_and_grad(lambda arrays, bias: (run(*arrays, bias=bias) ** 2).sum(), (0, 1))(arrays, bias)

    biases = jnp.stack([bias, 2 * bias, -bias])
    batched = jax.jit(jax.vmap(one))(tuple(x[:, None] for x in arrays), biases, mask[:, None])
    for i in range(3):
        alone = jax.jit(one)(tuple(x[i : i + 1] for x in arrays), biases[i], mask[i : i + 1])
        assert deviation(jax.tree.map(lambda x, i=i: x[i], batched), alone) < TOLERANCE["float32"]


SHARDED = """
    import functools
    import jax
    from jax.sharding import PartitionSpec as P
    from pallas_kernels.window_attention import IMPLEMENTATIONS, canonical
    from tests.pallas_kernels.test_window_attention import SHAPES, TOLERANCE, deviation

    arrays, options = SHAPES["masked_and_shifted"].arguments()
    arrays = tuple(x[:2] for x in arrays)
    mask, bias = options.pop("mask")[:2], options.pop("bias")
    mesh = jax.make_mesh((2, 2), ("data", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = P("data", None, None, "heads")
    for name, implementation in IMPLEMENTATIONS.items():
        is_kernel = name.startswith(("pallas", "triton"))
        given = canonical(arrays[0], bias=bias, mask=mask, **options)
        if (reason := implementation.unsupported_reason(*arrays, **given, **{"interpret": True} if is_kernel else {})) is not None:
            print("skipped", name, reason)
            continue

        def whole(arrays, bias, mask, **interpret):
            return implementation.fn(*arrays, **canonical(arrays[0], bias=bias, mask=mask, **options), **interpret)

        def grads(f):
            return jax.jit(jax.grad(lambda arrays, bias: (f(arrays, bias, mask) ** 2).sum(), (0, 1)))

        sharded = functools.partial(jax.shard_map, mesh=mesh, in_specs=((spec,) * 3, P("heads"), P("data")), out_specs=spec)
        if is_kernel:  # the interpreter of kernels does not pass the check of what varies: with it the types alone are looked at
            if name != "triton":  # which has its own test of that
                jax.eval_shape(grads(sharded(whole)), arrays, bias)
            whole = functools.partial(whole, interpret=True)
        one, many = (grads(f)(arrays, bias) for f in (whole, sharded(whole, check_vma=not is_kernel)))
        assert deviation(many, one) < TOLERANCE["float32"], (name, deviation(many, one))
        print("passed", name)
"""


def test_shards_over_batch_and_heads_give_the_same_gradients():
    """The test runs in a process of its own, which has four devices.

    `shard_map` checks which values vary over which axis.
    """
    done = run_on_four_devices(SHARDED)
    assert done.stdout.count("passed") + done.stdout.count("skipped") == len(IMPLEMENTATIONS)


def jaxprs_of(params):
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
    return [getattr(x, "jaxpr", x) for x in leaves if hasattr(x, "eqns") or hasattr(x, "jaxpr")]


def largest_intermediate(fn, arrays, options) -> int:
    jaxpr = jax.make_jaxpr(lambda arrays: value_and_grads(fn, arrays, options))(arrays)

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name != "pallas_call":  # values inside a kernel stay on chip
                for sub in jaxprs_of(eqn.params):
                    yield from sizes(sub)
            yield from (int(np.prod(x.aval.shape)) for x in eqn.outvars)

    return max(sizes(jaxpr.jaxpr))


@pytest.mark.parametrize("which", list(IMPLEMENTATIONS))
def test_only_the_definition_is_quadratic_in_the_map(which):
    arrays, options = Shape(size=(1, 40, 40, 1, 32), window_size=4).arguments()
    largest = largest_intermediate(implementation(which, arrays, options), arrays, options)
    assert (largest >= 1600**2) == (which == "reference")


unchecked = inspect.unwrap  # without the check of annotations, as for users


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_size": 0}, "must be positive"),
        ({"shift": 4}, r"shift=\(4, 4\) must be in \[0"),
        ({"shift": 1, "grid": True}, "must be 0 with grid=True"),
        ({"mask": jnp.ones((1, 8, 8))}, "must be bool"),
        ({"bias": jnp.ones((2, 16, 15))}, "or the table"),
    ],
)
def test_wrong_arguments_are_refused_before_the_choice(change, message):
    arrays, options = Shape(size=(1, 8, 8, 2, 32), window_size=4).arguments()
    with pytest.raises(ValueError, match=message) as caught:
        unchecked(window_attention)(*arrays, **{**options, **change}, implementation="no such")
    assert not isinstance(caught.value, UnsupportedError)


def test_arrays_that_do_not_fit_are_refused():
    (query, key, value), options = Shape(size=(1, 8, 8, 2, 32), window_size=4).arguments()
    with pytest.raises(ValueError, match="must be one"):
        unchecked(window_attention)(query, key, value.astype(jnp.bfloat16), **options)
    with pytest.raises(ValueError, match="3, heads, head_dim"):
        unchecked(window_attention_qkv)(jnp.stack([query, key], 3), **options)

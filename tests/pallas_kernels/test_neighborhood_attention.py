"""All implementations against recordings of NATTEN's rule by brute force, and invariants."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.neighborhood_attention import IMPLEMENTATIONS, UnsupportedError, neighborhood_attention
from pallas_kernels.neighborhood_attention.neighborhoods import Axis

# float32 products of at most 64 terms of unit variance, against float64: measured 3e-6. Gradients
# sum over more terms: 2e-5.
OUT, GRAD = 2e-5, 1e-4
# Inputs, weights and output are rounded to 8 (bfloat16) or 11 (float16) bits, relative to values of
# about 1.
HALF = {"bfloat16": 2e-2, "float16": 3e-3}
# Kernels are tested in test_neighborhood_attention_pallas.py.
NAMES = [name for name in sorted(IMPLEMENTATIONS) if not name.startswith(("pallas", "mosaic"))]


def normal(name, shape):
    import zlib

    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return jnp.asarray(rng.standard_normal(shape).astype(np.float32))


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.goldens("na_ops")
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_brute_force_of_nattens_rule(golden_file, name):
    with np.load(golden_file) as recorded:
        for case in json.loads(str(recorded["cases"])):
            check_case(case, recorded, name)


def check_case(c, recorded, name):
    case = c["name"]
    t = {x: normal(f"{case}/{x}", e["shape"]) for x, e in c["inputs"].items()}
    options = {
        "kernel_size": tuple(c["kernel"]),
        "dilation": tuple(c["dilation"]),
        "stride": tuple(c["stride"]),
        "is_causal": tuple(bool(x) for x in c["causal"]),
        "scale": c["scale"],
        "implementation": name,
    }

    def run(q, k, v, rpb):
        return neighborhood_attention(q, k, v, bias=rpb, return_logsumexp=True, **options)

    (out, lse), pull_back = jax.vjp(run, t["q"], t["k"], t["v"], t.get("rpb"))
    np.testing.assert_allclose(out, recorded[f"{case}/out"], rtol=0, atol=OUT, err_msg=case)
    np.testing.assert_allclose(lse, recorded[f"{case}/lse"], rtol=0, atol=OUT, err_msg=case)
    grads = pull_back((t["do"], jnp.zeros_like(lse)))
    for grad, x in zip(grads, ("dq", "dk", "dv", "drpb"), strict=True):
        if grad is not None:
            np.testing.assert_allclose(grad, recorded[f"{case}/{x}"], rtol=0, atol=GRAD, err_msg=case)


FITTING = [
    (size, kernel, dilation, stride)
    for size in (1, 5, 7, 12)
    for kernel in (1, 2, 3, 4)
    for dilation in (1, 2, 3)
    for stride in (1, 2)
    if kernel * dilation <= size and stride <= kernel
]


@pytest.mark.parametrize(("size", "kernel", "dilation", "stride"), FITTING)
def test_every_query_sees_kernel_keys_of_its_residue_class(size, kernel, dilation, stride):
    mask = Axis(size, kernel, dilation, stride).mask()
    assert (mask.sum(1) == kernel).all()
    query, key = np.nonzero(mask)
    assert ((query - key) % dilation == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_window_as_large_as_the_map_is_dense_attention(name):
    q, k, v = arrays(0, *[(2, 5, 6, 2, 8)] * 3)
    out = neighborhood_attention(q, k, v, kernel_size=(5, 6), implementation=name)
    dense = jax.nn.dot_product_attention(*(x.reshape(2, 30, 2, 8) for x in (q, k, v)))
    np.testing.assert_allclose(out.reshape(dense.shape), dense, atol=OUT)


@pytest.mark.parametrize("name", NAMES)
def test_a_stride_of_the_kernel_makes_windows(name):
    q, k, v = arrays(1, *[(1, 8, 12, 2, 8)] * 3)
    out = neighborhood_attention(q, k, v, kernel_size=4, stride=4, implementation=name)
    windows = [x.reshape(1, 2, 4, 3, 4, 2, 8).swapaxes(2, 3).reshape(6, 16, 2, 8) for x in (q, k, v)]
    expected = jax.nn.dot_product_attention(*windows).reshape(1, 2, 3, 4, 4, 2, 8).swapaxes(2, 3).reshape(q.shape)
    np.testing.assert_allclose(out, expected, atol=OUT)


@pytest.mark.parametrize("name", NAMES)
def test_dilation_is_attention_inside_each_residue_class(name):
    q, k, v = arrays(2, *[(1, 11, 2, 8)] * 3)
    out = neighborhood_attention(q, k, v, kernel_size=3, dilation=3, implementation=name)
    for r in range(3):
        alone = neighborhood_attention(q[:, r::3], k[:, r::3], v[:, r::3], kernel_size=3, implementation="reference")
        np.testing.assert_allclose(out[:, r::3], alone, atol=OUT)


@pytest.mark.parametrize("name", NAMES)
def test_extra_tokens_and_logsumexp_merge_to_attention_over_the_union(name):
    q, k, v, ek, ev = arrays(3, *[(2, 6, 7, 4, 8)], *[(2, 6, 7, 2, 8)] * 2, *[(2, 3, 2, 8)] * 2)
    run = functools.partial(neighborhood_attention, kernel_size=3, return_logsumexp=True, implementation=name)
    both, lse = run(q, k, v, extra_key=ek, extra_value=ev)
    near, near_lse = run(q, k, v)
    logits = jnp.einsum("byxhd,bkhd->byxhk", q, jnp.repeat(ek, 2, 2)) * 8**-0.5
    far_lse = jax.nn.logsumexp(logits, -1)
    far = jnp.einsum("byxhk,bkhd->byxhd", jax.nn.softmax(logits), jnp.repeat(ev, 2, 2))
    np.testing.assert_allclose(lse, jnp.logaddexp(near_lse, far_lse), atol=OUT)
    share = jnp.exp(near_lse - lse)[..., None]
    np.testing.assert_allclose(both, share * near + (1 - share) * far, atol=OUT)


NASTY = {
    "does_not_divide_the_tile": ((1, 23, 17, 2, 8), {"kernel_size": 5}),
    "one_token": ((1, 1, 1, 1, 8), {"kernel_size": 1}),
    "even_kernel": ((1, 13, 16, 1, 16), {"kernel_size": (4, 6)}),
    "unequal_classes": ((1, 19, 23, 2, 8), {"kernel_size": 3, "dilation": (4, 5)}),
    "three_axes": ((1, 5, 9, 11, 2, 8), {"kernel_size": (3, 3, 5), "dilation": (1, 2, 1)}),
    "nat_tiny_stage_2": ((1, 28, 28, 4, 32), {"kernel_size": 7}),
    "dinat_stage_2": ((1, 28, 28, 2, 32), {"kernel_size": 7, "dilation": 4}),
}


@pytest.mark.parametrize("shape", sorted(NASTY))
def test_xla_has_the_values_and_gradients_of_the_reference_with_a_bias(shape):
    dims, options = NASTY[shape]
    kernel = options["kernel_size"]
    kernel = kernel if isinstance(kernel, tuple) else (kernel,) * (len(dims) - 3)
    q, k, v, bias, do = arrays(4, dims, dims, dims, (dims[-2], *(2 * n - 1 for n in kernel)), dims)
    results = []
    for name in ("reference", "xla"):
        run = functools.partial(neighborhood_attention, **options, implementation=name)
        out, pull_back = jax.vjp(lambda q, k, v, bias, run=run: run(q, k, v, bias=bias), q, k, v, bias)
        results.append((out, *pull_back(do)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=GRAD * max(1.0, float(jnp.abs(one).max())))


@pytest.mark.parametrize("dtype", sorted(HALF))
def test_half_precision_follows_float64(dtype):
    q, k, v = arrays(5, *[(1, 14, 14, 2, 32)] * 3)
    half = [x.astype(dtype) for x in (q, k, v)]
    out = neighborhood_attention(*half, kernel_size=7)
    assert out.dtype == dtype
    exact = neighborhood_attention(*(x.astype(jnp.float32) for x in half), kernel_size=7, implementation="reference")
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=0, atol=HALF[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_transformations_and_two_runs_are_equal(name):
    q, k, v = arrays(6, *[(2, 9, 8, 2, 8)] * 3)
    run = functools.partial(neighborhood_attention, kernel_size=3, implementation=name)
    one, two = run(q, k, v), run(q, k, v)
    np.testing.assert_array_equal(one, two)
    batched = jax.vmap(run)(*(x[:, None] for x in (q, k, v)))[:, 0]
    np.testing.assert_allclose(batched, one, atol=OUT)
    loss = lambda f: jax.jit(jax.grad(lambda q: (f(q, k, v) ** 2).sum()))(q)  # noqa: E731
    np.testing.assert_allclose(loss(jax.checkpoint(run)), loss(run), atol=OUT)


def test_no_more_than_a_strip_of_logits_exists():
    shape = jax.ShapeDtypeStruct((1, 112, 112, 1, 8), jnp.float32)
    run = lambda q, k, v: neighborhood_attention(q, k, v, kernel_size=7, implementation="xla").sum()  # noqa: E731
    compiled = jax.jit(jax.grad(run, (0, 1, 2))).lower(shape, shape, shape).compile()
    dense = 112**4 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < dense / 10


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                yield from primitives(getattr(sub, "jaxpr", sub))


def test_the_gradient_of_xla_scatters_nothing():
    """Scatters are atomic on GPUs, so that sums would differ from run to run."""
    q, bias = jnp.zeros((1, 20, 23, 2, 8)), jnp.zeros((2, 9, 5))
    run = lambda *args: neighborhood_attention(*args[:3], bias=args[3], kernel_size=(5, 3), implementation="xla").sum()  # noqa: E731
    names = set(primitives(jax.make_jaxpr(jax.grad(run, (0, 1, 2, 3)))(q, q, q, bias).jaxpr))
    assert "dot_general" in names
    assert not [name for name in names if name.startswith("scatter")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 9}, "kernel_size=9 times dilation=1 of axis 0 must be at most its size 8"),
        ({"kernel_size": 3, "dilation": (1, 4)}, "times dilation=4 of axis 1"),
        ({"kernel_size": (3, 3, 3)}, "one for each of 2 axes"),
        ({"kernel_size": 3, "stride": 4}, r"stride=4 of axis 0 must be in \[1, kernel_size=3\]"),
        ({"kernel_size": 0}, "must be positive"),
        ({"kernel_size": 3, "bias": jnp.zeros((2, 3, 3))}, r"must be \(2, 5, 5\)"),
        ({"kernel_size": 3, "stride": 2, "bias": jnp.zeros((2, 5, 5))}, "without stride=2"),
        ({"kernel_size": 3, "extra_key": jnp.zeros((1, 1, 2, 8))}, "given together"),
        ({"kernel_size": 3, "implementation": "refrence"}, "did you mean 'reference'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_rule(options, words):
    q = jnp.zeros((1, 8, 10, 2, 8))
    with pytest.raises(ValueError, match=words):
        neighborhood_attention(q, q, q, **options)
    assert issubclass(UnsupportedError, ValueError)

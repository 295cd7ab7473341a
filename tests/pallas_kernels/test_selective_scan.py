"""Every implementation of the selective scan against the definition, and it against the paper."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from pallas_kernels import target
from pallas_kernels.selective_scan import IMPLEMENTATIONS, UnsupportedError, canonical, pallas_tpu, selective_scan, tiles
from pallas_kernels.selective_scan.shapes import NASTY, Shape

# Largest deviation allowed, relative to the largest value of the definition. Float32: products of
# up to 65 decays and sums of as many terms in another order; 9 half units in the last place were
# seen. Bfloat16: roundings of the result and of the gradients, half a unit each.
TOLERANCE = {"float32": 64 * 2**-24, "bfloat16": 2 * 2**-8}
# Shapes of the interpreted kernel, which takes long to compile; the second is cut into chunks.
SMALL = {
    "seven_tokens": NASTY["seven_tokens"],
    "two_chunks": Shape(size=(1, 2, 200, 3), state=1),
    "two_chunks_reverse": Shape(size=(1, 1, 200, 3), state=1, reverse=True),
}


def by_hand(x, dt, a, b, c, *, skip, dt_bias, reverse):
    """The recurrence token by token, channel by channel, in float64."""
    x, dt, a, b, c, skip, dt_bias = (np.asarray(v, np.float64) for v in (x, dt, a, b, c, skip, dt_bias))
    out = np.zeros_like(x)
    for image, group, channel in np.ndindex(x.shape[0], x.shape[1], x.shape[3]):
        h = np.zeros(a.shape[2])
        for t in range(x.shape[2])[:: -1 if reverse else 1]:
            u, step = x[image, group, t, channel], np.logaddexp(dt[image, group, t, channel] + dt_bias[group, channel], 0)
            h = np.exp(step * a[group, channel]) * h + step * b[image, group, t] * u
            out[image, group, t, channel] = c[image, group, t] @ h + skip[group, channel] * u
    return out


def deviation(ours, theirs) -> float:
    """Returns the largest deviation over all arrays, in units of each array's largest value, or of
    1e-3 of the largest of all.
    """
    ours, theirs = ([np.asarray(x, np.float64) for x in jax.tree.leaves(arrays)] for arrays in (ours, theirs))
    least = 1e-3 * max(np.abs(x).max() for x in theirs)
    return max(np.abs(a - b).max() / max(np.abs(b).max(), least) for a, b in zip(ours, theirs, strict=True))


def value_and_grads(fn, arrays, options):
    """Returns the result and its pull-back to all seven arrays, compiled as one."""
    cotangent = jax.random.normal(jax.random.key(9), arrays[0].shape, arrays[0].dtype)
    reverse, rest = options["reverse"], {name: x for name, x in options.items() if name != "reverse"}

    @jax.jit
    def run(arrays, rest):
        out, pull_back = jax.vjp(lambda arrays, rest: fn(*arrays, **canonical(*arrays, **rest, reverse=reverse)), arrays, rest)
        return out, pull_back(cotangent)

    return run(arrays, rest)


def expected(shape: Shape):
    return value_and_grads(IMPLEMENTATIONS["reference"].fn, *shape.arguments())


@pytest.mark.parametrize("name", sorted(NASTY))
def test_the_definition_is_the_recurrence(name):
    arrays, options = NASTY[name].arguments()
    out = by_hand(*arrays, **options)
    assert deviation(selective_scan(*arrays, **options, implementation="reference"), out) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["one_token", "sixty_five_tokens", "sixty_five_reverse"])
@pytest.mark.parametrize("platform", ["cpu", "any"])
def test_values_and_gradients_of_xla_are_those_of_the_definition(platform, name):
    with target.assume(platform):  # tokens in turn on a CPU, a prefix sum elsewhere
        ours = value_and_grads(IMPLEMENTATIONS["xla"].fn, *NASTY[name].arguments())
    assert deviation(ours, expected(NASTY[name])) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_values_and_gradients_of_the_kernel_are_those_of_the_definition(name, monkeypatch):
    monkeypatch.setattr(tiles, "_MAX_STATES", 128 * 128)
    monkeypatch.setattr(tiles, "_ROWS", 16)  # two eights a step of the loop, which is written out, are quicker to compile
    shape = SMALL[name]
    assert tiles.Layout.of(shape.size, shape.state).chunks == (2 if "chunks" in name else 1)
    ours = value_and_grads(functools.partial(pallas_tpu.selective_scan, interpret=True), *shape.arguments())
    assert deviation(ours, expected(shape)) < TOLERANCE["float32"]


def test_bfloat16_is_near_the_definition_in_float32():
    arrays, options = NASTY["sixty_five_tokens"].arguments(jnp.bfloat16)
    ours = value_and_grads(IMPLEMENTATIONS["xla"].fn, arrays, options)
    assert ours[0].dtype == ours[1][0][0].dtype == jnp.bfloat16
    wide = tuple(x.astype(jnp.float32) for x in arrays)
    out = selective_scan(*wide, **options, implementation="reference")
    assert deviation(ours[0], out) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("name", ["xla", "reference"])
def test_a_token_without_a_step_leaves_the_state_as_it_is(name):
    (x, dt, a, b, c), options = NASTY["sixty_five_tokens"].arguments()
    gone = jnp.arange(x.shape[2]) % 3 == 1
    out = selective_scan(x, jnp.where(gone[:, None], -1e4, dt), a, b, c, **options, implementation=name)
    x, dt, b, c = (v[:, :, ~gone] for v in (x, dt, b, c))
    rest = selective_scan(x, dt, a, b, c, **options, implementation=name)
    assert deviation(out[:, :, ~gone], rest) < TOLERANCE["float32"]


@pytest.mark.parametrize("platform", ["cpu", "any"])
def test_extreme_steps_give_finite_values_and_gradients(platform):
    (x, dt, *rest), options = NASTY["sixty_five_tokens"].arguments()
    with target.assume(platform):
        results = value_and_grads(IMPLEMENTATIONS["xla"].fn, (x, 1e3 * dt, *rest), options)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"dt": jnp.zeros((2, 1, 65, 4))}, "must be one"),
        ({"a": jnp.zeros((1, 4, 3))}, "must be"),
        ({"c": jnp.zeros((2, 1, 65, 2))}, "must be"),
        ({"b": jnp.zeros((2, 1, 65, 3), jnp.bfloat16)}, "must be one"),
        ({"skip": jnp.zeros(5)}, "must be"),
        ({"implementation": "scan"}, "is not one of"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_rule(change, rule, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no check of shapes before ours
    arrays, options = NASTY["sixty_five_tokens"].arguments()
    arguments = {**dict(zip(("x", "dt", "a", "b", "c"), arrays, strict=True)), **options, **change}
    with pytest.raises(ValueError, match=rule):
        selective_scan(**arguments)


def test_the_kernel_says_why_it_cannot_run_here():
    arrays, options = NASTY["one_token"].arguments()
    with pytest.raises(UnsupportedError, match="it needs a TPU, not cpu"):
        selective_scan(*arrays, **options, implementation="pallas_tpu")

"""The selective scan on TPUs: the tokens of a chunk, a register's eight at a time, and all states.

Tokens lie along sublanes and channels along lanes, as projections give and take them. The states of
eight tokens come from each other by three steps of a prefix sum: each adds the sums that end one,
two and four tokens before, decayed. The decays over so many tokens are exponentials of the rate
times the sum of their steps, and these sums are the same for all states of a channel. From one
eight to the next the state goes by a single product and sum, so that the eights overlap. It stays
in VMEM from chunk to chunk; the state before each chunk is kept for the backward pass, which
computes the chunk's states again and then goes back through its tokens.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.logits import LOG2E
from pallas_kernels.selective_scan.tiles import NO_STEP, ROWS, VMEM_MARGIN, Layout
from pallas_kernels.sharding import by_images, indivisible, result_like
from pallas_kernels.tpu import DTYPES, SUBLANES, usable_vmem, wrong_platform


def selective_scan(x, dt, a, b, c, *, skip, dt_bias, reverse: bool, interpret: bool = False) -> Float[Array, "b groups n channels"]:
    """The operator on canonical arguments.

    `interpret` runs the kernels in an interpreter, for tests.
    """

    def on_device(tokens, weights, _):
        return _scan(tokens, weights, Layout.of(tokens[0].shape, weights[0].shape[-1]), reverse, interpret)

    return by_images(on_device, (x, dt, b, c), (a, skip, dt_bias), None)


def unsupported_reason(x, dt, a, b, c, *, interpret: bool = False, **_) -> str | None:
    """Why the kernels cannot run these arguments here, or None."""
    del dt, b, c
    if reason := wrong_platform(interpret=interpret) or indivisible(x.shape[0]):
        return reason
    if x.dtype.name not in DTYPES:
        return f"dtype {x.dtype.name} is not one of {', '.join(DTYPES)}"
    layout = Layout.of(x.shape, a.shape[-1])
    return layout.unsupported_reason(usable_vmem())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _scan(tokens, weights, layout: Layout, reverse: bool, interpret: bool):
    return _forward(tokens, weights, layout, reverse, interpret)[0]


def _forward(tokens, weights, layout: Layout, reverse: bool, interpret: bool):
    x = tokens[0]
    like = (result_like(x, x.shape), result_like(x, (*x.shape[:2], layout.chunks, layout.state, x.shape[3]), jnp.float32))
    specs = (layout.tokens(layout.tile, reverse), layout.starts(reverse))
    kernel = functools.partial(forward_kernel, layout=layout, reverse=reverse)
    y, starts = _call(kernel, "selective_scan_forward", tokens, weights, (), like, specs, layout, reverse, 0, interpret)
    return y, (tokens, weights, starts)


def _backward(layout: Layout, reverse: bool, interpret: bool, residuals, d_y):
    tokens, weights, starts = residuals
    x, _, b, _ = tokens
    partial = result_like(x, (layout.tiles, *b.shape), jnp.float32)
    sums = result_like(x, (*x.shape[:2], layout.state + 2, x.shape[3]), jnp.float32)
    like = (result_like(x, x.shape), result_like(x, x.shape), partial, partial, sums)
    wide = layout.tokens(layout.tile, not reverse)
    narrow = layout.partial(not reverse)
    specs = (wide, wide, narrow, narrow, layout.sums())
    kernel = functools.partial(backward_kernel, layout=layout, reverse=reverse)
    extra = ((d_y, wide), (starts, layout.starts(not reverse)))
    d_x, d_dt, d_b, d_c, sums = _call(
        kernel, "selective_scan_backward", tokens, weights, extra, like, specs, layout, not reverse, layout.chunk, interpret
    )
    sums = sums.sum(0)  # [groups, state + 2, channels]: rates, skip, bias
    d_weights = (sums[:, :-2].swapaxes(1, 2), sums[:, -2], sums[:, -1])
    d_weights = tuple(d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True))
    return (d_x, d_dt, d_b.sum(0).astype(x.dtype), d_c.sum(0).astype(x.dtype)), d_weights


_scan.defvjp(_forward, _backward)


def _call(kernel, name: str, tokens, weights, extra, like, specs, layout: Layout, reverse: bool, kept: int, interpret: bool) -> Any:
    """Runs a kernel over images and groups, channels, and chunks in the order of `reverse`.

    `kept` is the number of tokens whose states are kept in VMEM.
    """
    a, skip, dt_bias = (w.astype(jnp.float32) for w in weights)
    x, dt, b, c = tokens
    wide, narrow = layout.tokens(layout.tile, reverse), layout.tokens(layout.state, reverse)
    per_group = jnp.concatenate((a.swapaxes(1, 2), skip[:, None], dt_bias[:, None]), 1)  # [groups, state + 2, channels]
    state = pltpu.VMEM((layout.state, SUBLANES, layout.tile), jnp.float32)
    return pl.pallas_call(
        kernel,
        grid=(x.shape[0] * x.shape[1], layout.tiles, layout.chunks),
        in_specs=(wide, wide, narrow, narrow, layout.per_group(), *(spec for _, spec in extra)),
        out_specs=specs,
        out_shape=like,
        scratch_shapes=[state, state, pltpu.VMEM((layout.state, kept, layout.tile), jnp.float32)] if kept else [state],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=layout.vmem_bytes + VMEM_MARGIN
        ),
        name=name,
        interpret=interpret,
    )(x, dt, b, c, per_group, *(array for array, _ in extra))


class Eight(NamedTuple):
    """Eight tokens, [8, channels]; the sums of steps are those of the scan's order."""

    x: Array
    step: Array
    slope: Array  # of the step by dt
    sums: tuple[Array, Array, Array]  # steps of the last one, two and four tokens
    prefix: Array  # steps of the tokens up to this one
    total: Array  # steps of all eight


def _later(v: Array, by: int, reverse: bool) -> Array:
    """v of the token that is `by` before in the scan; zero where there is none in the eight."""
    if reverse:
        return _earlier(v, by, False)
    return jnp.where(lax.broadcasted_iota(jnp.int32, v.shape, 0) >= by, pltpu.roll(v, by, 0), 0.0)


def _earlier(v: Array, by: int, reverse: bool) -> Array:
    """v of the token that is `by` after in the scan; zero where there is none in the eight."""
    if reverse:
        return _later(v, by, False)
    return jnp.where(lax.broadcasted_iota(jnp.int32, v.shape, 0) < SUBLANES - by, pltpu.roll(v, SUBLANES - by, 0), 0.0)


def _everywhere(v: Array, at: int) -> Array:
    return jnp.broadcast_to(v[at : at + 1], v.shape)


def _eight(x: Array, dt: Array, reverse: bool) -> Eight:
    """Eight tokens; dt includes the bias."""
    power = jnp.exp(-jnp.abs(dt))
    step = jnp.maximum(dt, 0.0) + jnp.log1p(power)
    slope = jnp.where(dt >= 0, 1.0, power) / (1.0 + power)
    two = step + _later(step, 1, reverse)
    four = two + _later(two, 2, reverse)
    prefix = four + _later(four, 4, reverse)
    return Eight(x, step, slope, (step, two, four), prefix, _everywhere(prefix, 0 if reverse else SUBLANES - 1))


def _states(eight: Eight, rate: Array, inputs: Array, carry: Array, reverse: bool) -> tuple[Array, Array]:
    """The states of eight tokens, and the last one in every row; `rate` in powers of two."""
    h = inputs
    for by, steps in zip((1, 2, 4), eight.sums, strict=True):
        h = h + jnp.exp2(rate * steps) * _later(h, by, reverse)
    last = _everywhere(h, 0 if reverse else SUBLANES - 1)
    return h + jnp.exp2(rate * eight.prefix) * carry, last + jnp.exp2(rate * eight.total) * carry


def _each_row(layout: Layout, reverse: bool, body) -> None:
    """body(first token) for the rows of a chunk, each of ROWS tokens, in the order of the scan."""
    rows = layout.chunk // ROWS

    def step(i, _) -> None:
        body(pl.multiple_of((rows - 1 - i if reverse else i) * ROWS, ROWS))

    lax.fori_loop(0, rows, step, None)


def _halves(reverse: bool) -> list[slice]:
    """The eights of a row, in the order of the scan."""
    return [slice(i, i + SUBLANES) for i in range(0, ROWS, SUBLANES)][:: -1 if reverse else 1]


def _load(layout: Layout, chunk, row, *refs) -> list[Array]:
    """Reads x, dt, b, c and the result's gradient, or some of them, of a row of tokens.

    Beyond the last token the steps are none and all else is zero.
    """
    arrays = [ref[0, 0, pl.ds(row, ROWS), :].astype(jnp.float32) for ref in refs]
    if layout.n == layout.chunks * layout.chunk:
        return arrays
    left = layout.n - chunk * layout.chunk - row
    absent = (0.0, NO_STEP, 0.0, 0.0, 0.0)
    return [jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 0) < left, x, v) for x, v in zip(arrays, absent, strict=False)]


def forward_kernel(x_ref, dt_ref, b_ref, c_ref, group_ref, y_ref, start_ref, carry_ref, *, layout: Layout, reverse: bool):
    """The results of a chunk."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = jnp.zeros(carry_ref.shape, carry_ref.dtype)

    chunk = layout.chunks - 1 - step if reverse else step
    start_ref[0, 0, 0] = carry_ref[:, 0]

    def body(row) -> None:
        x, dt, b, c = _load(layout, chunk, row, x_ref, dt_ref, b_ref, c_ref)
        out: dict[int, Array] = {}
        for half in _halves(reverse):
            eight = _eight(x[half], dt[half] + group_ref[0, layout.state + 1 :], reverse)
            u, y = eight.x * eight.step, group_ref[0, layout.state : layout.state + 1] * eight.x
            for i in range(layout.state):
                rate = group_ref[0, i : i + 1] * LOG2E
                h, carry_ref[i] = _states(eight, rate, u * b[half, i : i + 1], carry_ref[i], reverse)
                y += h * c[half, i : i + 1]
            out[half.start] = y
        y_ref[0, 0, pl.ds(row, ROWS), :] = jnp.concatenate([out[i] for i in sorted(out)]).astype(y_ref.dtype)

    _each_row(layout, reverse, body)


def backward_kernel(
    x_ref, dt_ref, b_ref, c_ref, group_ref, d_y_ref, start_ref, d_x_ref, d_dt_ref, d_b_ref, d_c_ref, sums_ref, carry_ref, later_ref,
    states_ref, *, layout: Layout, reverse: bool,
):  # fmt: skip
    """The gradients of a chunk's tokens; those of the group's parameters are added up."""
    step, count = pl.program_id(2), layout.state
    chunk = step if reverse else layout.chunks - 1 - step
    bias = group_ref[0, count + 1 :]

    @pl.when(step == 0)
    def _():
        for ref in (later_ref, sums_ref):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    for i in range(count):
        carry_ref[i] = jnp.broadcast_to(start_ref[0, 0, 0, i : i + 1], carry_ref.shape[1:])

    def again(row) -> None:
        x, dt, b = _load(layout, chunk, row, x_ref, dt_ref, b_ref)
        for half in _halves(reverse):
            eight = _eight(x[half], dt[half] + bias, reverse)
            u, at = eight.x * eight.step, pl.ds(pl.multiple_of(row + half.start, SUBLANES), SUBLANES)
            for i in range(count):
                rate = group_ref[0, i : i + 1] * LOG2E
                states_ref[i, at], carry_ref[i] = _states(eight, rate, u * b[half, i : i + 1], carry_ref[i], reverse)

    _each_row(layout, reverse, again)

    def back(row) -> None:
        x, dt, b, c, d_y = _load(layout, chunk, row, x_ref, dt_ref, b_ref, c_ref, d_y_ref)
        results: dict[int, tuple[Array, ...]] = {}
        for half in _halves(not reverse):
            eight = _eight(x[half], dt[half] + bias, reverse)
            at = pl.ds(pl.multiple_of(row + half.start, SUBLANES), SUBLANES)
            results[half.start] = _eight_gradient(
                eight, d_y[half], b[half], c[half], group_ref, sums_ref, later_ref, states_ref, at, reverse
            )
        places = pl.ds(row, ROWS)
        parts = [jnp.concatenate([results[i][k] for i in sorted(results)]) for k in range(4)]
        for ref, part in zip((d_x_ref, d_dt_ref), parts, strict=False):
            ref[0, 0, places, :] = part.astype(ref.dtype)
        for ref, part in zip((d_b_ref, d_c_ref), parts[2:], strict=True):
            ref[0, 0, 0, places, :] = part

    _each_row(layout, not reverse, back)


def _eight_gradient(eight: Eight, d_y, b, c, group_ref, sums_ref, later_ref, states_ref, at, reverse: bool) -> tuple[Array, ...]:
    """The gradients of x, dt, b and c of eight tokens.

    `later_ref` has the gradient of the last state of the eight by the tokens after them.
    """
    count = b.shape[1]
    u, first = eight.x * eight.step, SUBLANES - 1 if reverse else 0
    # Steps from a token to those that are one, two and four after it, and to the end of the eight.
    between = [_earlier(steps, by, reverse) for by, steps in zip((1, 2, 4), eight.sums, strict=True)]
    rest = eight.total - eight.prefix
    d_step, d_u = jnp.zeros_like(u), jnp.zeros_like(u)
    d_b, d_c = jnp.zeros_like(b), jnp.zeros_like(c)
    column = lax.broadcasted_iota(jnp.int32, b.shape, 1)
    for i in range(count):
        a = group_ref[0, i : i + 1]
        rate = a * LOG2E
        d_h = d_y * c[:, i : i + 1]
        for by, steps in zip((1, 2, 4), between, strict=True):
            d_h = d_h + jnp.exp2(rate * steps) * _earlier(d_h, by, reverse)
        before = _everywhere(jnp.exp2(rate * eight.step) * d_h, first)
        later = later_ref[i]
        d_h = d_h + jnp.exp2(rate * rest) * later
        later_ref[i] = before + jnp.exp2(rate * eight.total) * later
        h, b_i = states_ref[i, at], b[:, i : i + 1]
        d_rate = d_h * (h - u * b_i)  # the gradient of the token's rate times its step
        d_step += a * d_rate
        sums_ref[0, 0, i : i + 1] += jnp.sum(d_rate * eight.step, 0, keepdims=True)
        d_u += d_h * b_i
        d_b = jnp.where(column == i, jnp.sum(d_h * u, 1, keepdims=True), d_b)
        d_c = jnp.where(column == i, jnp.sum(h * d_y, 1, keepdims=True), d_c)
    d_dt = (d_step + d_u * eight.x) * eight.slope
    sums_ref[0, 0, count : count + 1] += jnp.sum(d_y * eight.x, 0, keepdims=True)
    sums_ref[0, 0, count + 1 :] += jnp.sum(d_dt, 0, keepdims=True)
    return d_u * eight.step + group_ref[0, count : count + 1] * d_y, d_dt, d_b, d_c

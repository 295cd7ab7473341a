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
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.logits import LOG2E
from pallas_kernels.selective_scan.tiles import NO_STEP, VMEM_MARGIN, Layout
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
    specs = (layout.wide(reverse), layout.starts(reverse))
    kernel = functools.partial(forward_kernel, layout=layout, reverse=reverse)
    y, starts = _call(kernel, "selective_scan_forward", tokens, weights, (), like, specs, layout, reverse, interpret)
    return y, (tokens, weights, starts)


def _backward(layout: Layout, reverse: bool, interpret: bool, residuals, d_y):
    tokens, weights, starts = residuals
    x = tokens[0]
    partial = result_like(x, (layout.tiles, *x.shape[:2], layout.states, layout.chunks * layout.lanes), jnp.float32)
    sums = result_like(x, (*x.shape[:2], layout.state + 2, x.shape[3]), jnp.float32)
    like = (result_like(x, x.shape), result_like(x, x.shape), partial, partial, sums)
    wide, narrow = layout.wide(not reverse), layout.partial(not reverse)
    specs = (wide, wide, narrow, narrow, layout.sums())
    kernel = functools.partial(backward_kernel, layout=layout, reverse=reverse)
    extra = ((d_y, wide), (starts, layout.starts(not reverse)))
    d_x, d_dt, d_b, d_c, sums = _call(
        kernel, "selective_scan_backward", tokens, weights, extra, like, specs, layout, not reverse, interpret
    )
    sums = sums.sum(0)  # [groups, state + 2, channels]: rates, skip, bias
    d_weights = (sums[:, :-2].swapaxes(1, 2), sums[:, -2], sums[:, -1])
    d_weights = tuple(d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True))
    d_b, d_c = (d.sum(0)[:, :, : layout.state, : layout.n].swapaxes(2, 3).astype(x.dtype) for d in (d_b, d_c))
    return (d_x, d_dt, d_b, d_c), d_weights


_scan.defvjp(_forward, _backward)


def _call(kernel, name: str, tokens, weights, extra, like, specs, layout: Layout, reverse: bool, interpret: bool) -> Any:
    """Runs a kernel over images and groups, channels, and chunks in the order of `reverse`.

    `extra` are further arrays with their cuts; the backward kernel has some, and more of VMEM.
    """
    a, skip, dt_bias = (w.astype(jnp.float32) for w in weights)
    x, dt, b, c = tokens
    wide, narrow = layout.wide(reverse), layout.narrow(reverse)
    per_group = jnp.concatenate((a.swapaxes(1, 2), skip[:, None], dt_bias[:, None]), 1)  # [groups, state + 2, channels]
    state, columns = (layout.state, SUBLANES, layout.tile), (layout.lanes, layout.states)
    scratch = [state, columns, columns]
    if extra:
        scratch += [state, columns, columns, (layout.state, layout.chunk, layout.tile)]
    return pl.pallas_call(
        kernel,
        grid=(x.shape[0] * x.shape[1], layout.tiles, layout.chunks),
        in_specs=(wide, wide, narrow, narrow, layout.per_group(), *(spec for _, spec in extra)),
        out_specs=specs,
        out_shape=like,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=layout.vmem_bytes + VMEM_MARGIN
        ),
        name=name,
        interpret=interpret,
    )(x, dt, *(_by_states(v, layout) for v in (b, c)), per_group, *(array for array, _ in extra))


def _by_states(v: Array, layout: Layout) -> Array:
    """b or c with tokens along the lanes: [b, groups, states, chunks * lanes].

    Beyond the last token it is zero.
    """
    ends = ((0, 0), (0, 0), (0, layout.states - layout.state), (0, layout.chunks * layout.lanes - layout.n))
    return jnp.pad(v.swapaxes(2, 3).astype(jnp.float32), ends)


class Eight(NamedTuple):
    """Eight tokens, [8, channels]; the sums of steps are those of the scan's order."""

    x: Array
    step: Array
    slope: Array  # derivative of the step by dt
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
    """body(first token) for the rows of a chunk, in the order of the scan."""
    rows, size = layout.chunk // layout.rows, layout.rows

    def step(i, _) -> None:
        body(pl.multiple_of((rows - 1 - i if reverse else i) * size, size))

    lax.fori_loop(0, rows, step, None)


def _eights(layout: Layout, reverse: bool) -> list[slice]:
    """The eights of a row, in the order of the scan."""
    return [slice(i, i + SUBLANES) for i in range(0, layout.rows, SUBLANES)][:: -1 if reverse else 1]


def _wide(layout: Layout, chunk, row, ref, absent: float = 0.0) -> Array:
    """The numbers of a row of tokens; those beyond the last token are `absent`."""
    x = ref[0, 0, pl.ds(row, layout.rows), :].astype(jnp.float32)
    if layout.n == layout.chunks * layout.chunk:
        return x
    left = layout.n - chunk * layout.chunk - row
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 0) < left, x, absent)


def _read(layout: Layout, chunk, row, x_ref, dt_ref, group_ref, reverse: bool) -> list[Eight]:
    """The eights of a row, in the order of the scan."""
    x, dt = _wide(layout, chunk, row, x_ref), _wide(layout, chunk, row, dt_ref, NO_STEP) + group_ref[0, layout.state + 1 :]
    return [_eight(x[part], dt[part], reverse) for part in _eights(layout, reverse)]


def forward_kernel(
    x_ref, dt_ref, b_ref, c_ref, group_ref, y_ref, start_ref, carry_ref, b_columns, c_columns, *, layout: Layout, reverse: bool
):
    """The results of a chunk."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = jnp.zeros(carry_ref.shape, carry_ref.dtype)

    chunk = layout.chunks - 1 - step if reverse else step
    start_ref[0, 0, 0] = carry_ref[:, 0]
    b_columns[...], c_columns[...] = b_ref[0, 0].T, c_ref[0, 0].T
    parts, order = _eights(layout, reverse), -1 if reverse else 1

    def body(row) -> None:
        eights = _read(layout, chunk, row, x_ref, dt_ref, group_ref, reverse)
        b, c = (ref[pl.ds(row, layout.rows)] for ref in (b_columns, c_columns))
        inputs = [eight.x * eight.step for eight in eights]
        out = [group_ref[0, layout.state : layout.state + 1] * eight.x for eight in eights]
        for i in range(layout.state):
            rate, carry = group_ref[0, i : i + 1] * LOG2E, carry_ref[i]
            for k, part in enumerate(parts):
                h, carry = _states(eights[k], rate, inputs[k] * b[part, i : i + 1], carry, reverse)
                out[k] += h * c[part, i : i + 1]
            carry_ref[i] = carry
        y_ref[0, 0, pl.ds(row, layout.rows), :] = jnp.concatenate(out[::order]).astype(y_ref.dtype)

    _each_row(layout, reverse, body)


def backward_kernel(
    x_ref, dt_ref, b_ref, c_ref, group_ref, d_y_ref, start_ref, d_x_ref, d_dt_ref, d_b_ref, d_c_ref, sums_ref, carry_ref, b_columns,
    c_columns, later_ref, d_b_columns, d_c_columns, states_ref, *, layout: Layout, reverse: bool,
):  # fmt: skip
    """The gradients of a chunk's tokens; those of the group's parameters are added up."""
    step = pl.program_id(2)
    chunk = step if reverse else layout.chunks - 1 - step

    @pl.when(step == 0)
    def _():
        for ref in (later_ref, sums_ref):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    b_columns[...], c_columns[...] = b_ref[0, 0].T, c_ref[0, 0].T
    if layout.lanes > layout.chunk:
        for ref in (d_b_columns, d_c_columns):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    _keep_states(layout, chunk, (x_ref, dt_ref, group_ref), start_ref, b_columns, carry_ref, states_ref, reverse)

    def back(row) -> None:
        eights = _read(layout, chunk, row, x_ref, dt_ref, group_ref, reverse)[::-1]
        parts = _eights(layout, not reverse)
        whole = (_wide(layout, chunk, row, d_y_ref), *(ref[pl.ds(row, layout.rows)] for ref in (b_columns, c_columns)))
        grads = [Gradient(eight, *(x[part] for x in whole)) for eight, part in zip(eights, parts, strict=True)]
        for i in range(layout.state):
            a, later, d_a = group_ref[0, i : i + 1], later_ref[i], 0.0
            for part, grad in zip(parts, grads, strict=True):
                h = states_ref[i, pl.ds(pl.multiple_of(row + part.start, SUBLANES), SUBLANES)]
                d_rate, later = grad.add_state(i, a, h, later, reverse)
                d_a += d_rate
            later_ref[i] = later
            sums_ref[0, 0, i : i + 1] += jnp.sum(d_a, 0, keepdims=True)
        _store(layout, row, grads, group_ref, (d_x_ref, d_dt_ref, d_b_columns, d_c_columns), sums_ref, reverse)

    _each_row(layout, not reverse, back)
    d_b_ref[0, 0, 0], d_c_ref[0, 0, 0] = d_b_columns[...].T, d_c_columns[...].T


def _keep_states(layout: Layout, chunk, refs, start_ref, b_columns, carry_ref, states_ref, reverse: bool) -> None:
    """Computes the states of a chunk once more."""
    x_ref, dt_ref, group_ref = refs
    for i in range(layout.state):
        carry_ref[i] = jnp.broadcast_to(start_ref[0, 0, 0, i : i + 1], carry_ref.shape[1:])

    def again(row) -> None:
        eights = _read(layout, chunk, row, x_ref, dt_ref, group_ref, reverse)
        b = b_columns[pl.ds(row, layout.rows)]
        inputs = [eight.x * eight.step for eight in eights]
        for i in range(layout.state):
            rate, carry = group_ref[0, i : i + 1] * LOG2E, carry_ref[i]
            for k, part in enumerate(_eights(layout, reverse)):
                h, carry = _states(eights[k], rate, inputs[k] * b[part, i : i + 1], carry, reverse)
                states_ref[i, pl.ds(pl.multiple_of(row + part.start, SUBLANES), SUBLANES)] = h
            carry_ref[i] = carry

    _each_row(layout, reverse, again)


class Gradient:
    """The gradients of eight tokens, to which each state adds its share."""

    def __init__(self, eight: Eight, d_y: Array, b: Array, c: Array):
        self.eight, self.d_y, self.b, self.c = eight, d_y, b, c
        self.u = eight.x * eight.step
        self.d_step, self.d_u = jnp.zeros_like(d_y), jnp.zeros_like(d_y)
        self.d_b, self.d_c = jnp.zeros_like(b), jnp.zeros_like(c)

    def add_state(self, i: int, a: Array, h: Array, later: Array, reverse: bool) -> tuple[Array, Array]:
        """Adds the share of a state.

        Args:
          i: Its number.
          a: Its rates.
          h: The states of the eight tokens.
          later: The gradient of the last of them by the tokens after the eight, in every row.
          reverse: Whether the scan goes from the last token to the first.

        Returns:
          The tokens' shares in the gradient of the rate, and `later` for the eight before.
        """
        eight, rate = self.eight, a * LOG2E
        d_h = self.d_y * self.c[:, i : i + 1]
        for by, steps in zip((1, 2, 4), eight.sums, strict=True):
            d_h = d_h + jnp.exp2(rate * _earlier(steps, by, reverse)) * _earlier(d_h, by, reverse)
        before = _everywhere(jnp.exp2(rate * eight.step) * d_h, SUBLANES - 1 if reverse else 0)
        d_h = d_h + jnp.exp2(rate * (eight.total - eight.prefix)) * later
        b, column = self.b[:, i : i + 1], lax.broadcasted_iota(jnp.int32, self.b.shape, 1)
        d_rate = d_h * (h - self.u * b)  # the gradient of the token's rate times its step
        self.d_step += a * d_rate
        self.d_u += d_h * b
        self.d_b = jnp.where(column == i, jnp.sum(d_h * self.u, 1, keepdims=True), self.d_b)
        self.d_c = jnp.where(column == i, jnp.sum(h * self.d_y, 1, keepdims=True), self.d_c)
        return d_rate * eight.step, before + jnp.exp2(rate * eight.total) * later


def _store(layout: Layout, row, grads: list[Gradient], group_ref, refs, sums_ref, reverse: bool) -> None:
    """Writes the gradients of a row, and adds those of skip and of the bias."""
    skip, order = group_ref[0, layout.state : layout.state + 1], 1 if reverse else -1
    d_x = [grad.d_u * grad.eight.step + skip * grad.d_y for grad in grads]
    d_dt = [(grad.d_step + grad.d_u * grad.eight.x) * grad.eight.slope for grad in grads]
    d_skip = functools.reduce(operator.add, (grad.d_y * grad.eight.x for grad in grads))
    sums_ref[0, 0, layout.state : layout.state + 1] += jnp.sum(d_skip, 0, keepdims=True)
    sums_ref[0, 0, layout.state + 1 :] += jnp.sum(functools.reduce(operator.add, d_dt), 0, keepdims=True)
    places = pl.ds(row, layout.rows)
    for ref, parts in zip(refs[:2], (d_x, d_dt), strict=True):
        ref[0, 0, places, :] = jnp.concatenate(parts[::order]).astype(ref.dtype)
    for ref, parts in zip(refs[2:], ([grad.d_b for grad in grads], [grad.d_c for grad in grads]), strict=True):
        ref[places] = jnp.concatenate(parts[::order])

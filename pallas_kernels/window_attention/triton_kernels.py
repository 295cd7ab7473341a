"""Window attention in Triton: the programs alone; `triton_gpu` calls them.

What a program does is what `pallas_gpu` says of its own. A map is [b, h, w, PARTS, HEADS,
HEAD_DIM], contiguous; what is the same for all programs is a constant of the compiled kernel, in
capitals.
"""

from typing import no_type_check  # Triton reads the annotations, and nobody else

import triton
import triton.language as tl

import pallas_kernels.logits as unit
from pallas_kernels.window_attention import windows

LOG2E = tl.constexpr(unit.LOG2E)
NO_KEY = tl.constexpr(unit.NO_KEY)
SHIFT_PENALTY = tl.constexpr(windows.SHIFT_PENALTY)
TINY = tl.constexpr(2.0**-126)  # the least float32 that is normal


@triton.jit
@no_type_check
def forward(
    query,
    key,
    value,
    bias,
    mask,
    out,
    B: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    GRID: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    WINDOWS_PER_PROGRAM: tl.constexpr,
):
    """One head of every PROGRAMS-th window; the projection is one array where PARTS is 3."""
    head = tl.program_id(0) % HEADS  # heads innermost: neighbours in memory
    program = tl.program_id(0) // HEADS
    offset = _load_bias(bias, head, ROWS * COLS, HAS_BIAS, SLOTS)
    for i in range(WINDOWS_PER_PROGRAM):
        token, is_token, side = _place(i * PROGRAMS + program, B, H, W, ROWS, COLS, DOWN, RIGHT, GRID, SLOTS)
        seen = _seen(mask, token, is_token, HAS_MASK)
        q = _load(query, token, is_token, head, 0, PARTS, HEADS, HEAD_DIM, LANES)
        k = _load(key, token, seen, head, 1 if PARTS == 3 else 0, PARTS, HEADS, HEAD_DIM, LANES)
        v = _load(value, token, seen, head, 2 if PARTS == 3 else 0, PARTS, HEADS, HEAD_DIM, LANES)
        weights, total = _weights(q, k, offset, seen, side, DOWN + RIGHT > 0, SCALE, HAS_MASK)
        attended = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / total[:, None]
        _store(out, attended, token, is_token, head, 0, 1, HEADS, HEAD_DIM, LANES)


@triton.jit
@no_type_check
def backward(
    query,
    key,
    value,
    bias,
    mask,
    d_out,
    d_query,
    d_key,
    d_value,
    d_bias,
    B: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    GRID: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    WINDOWS_PER_PROGRAM: tl.constexpr,
):
    """One head of every PROGRAMS-th window, and the sum of their bias gradients, d_bias [PROGRAMS,
    HEADS, slots, slots].

    Where PARTS is 3, d_query is the gradient of the projection, and d_key and d_value are not
    written.
    """
    if PARTS == 3:
        d_key = d_query
        d_value = d_query
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    offset = _load_bias(bias, head, ROWS * COLS, HAS_BIAS, SLOTS)
    d_offset = tl.zeros((SLOTS, SLOTS), tl.float32)
    for i in range(WINDOWS_PER_PROGRAM):
        token, is_token, side = _place(i * PROGRAMS + program, B, H, W, ROWS, COLS, DOWN, RIGHT, GRID, SLOTS)
        seen = _seen(mask, token, is_token, HAS_MASK)
        q = _load(query, token, is_token, head, 0, PARTS, HEADS, HEAD_DIM, LANES)
        k = _load(key, token, seen, head, 1 if PARTS == 3 else 0, PARTS, HEADS, HEAD_DIM, LANES)
        v = _load(value, token, seen, head, 2 if PARTS == 3 else 0, PARTS, HEADS, HEAD_DIM, LANES)
        d_attended = _load(d_out, token, is_token, head, 0, 1, HEADS, HEAD_DIM, LANES)
        weights, total = _weights(q, k, offset, seen, side, DOWN + RIGHT > 0, SCALE, HAS_MASK)
        weights /= total[:, None]
        d_weights = tl.dot(d_attended, tl.trans(v), input_precision="ieee")
        d_logits = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
        narrow = d_logits.to(q.dtype)
        d_q = tl.dot(narrow, k, input_precision="ieee") * SCALE
        d_k = tl.dot(tl.trans(narrow), q, input_precision="ieee") * SCALE
        d_v = tl.dot(tl.trans(weights.to(q.dtype)), d_attended, input_precision="ieee")
        _store(d_query, d_q, token, is_token, head, 0, PARTS, HEADS, HEAD_DIM, LANES)
        _store(d_key, d_k, token, is_token, head, 1 if PARTS == 3 else 0, PARTS, HEADS, HEAD_DIM, LANES)
        _store(d_value, d_v, token, is_token, head, 2 if PARTS == 3 else 0, PARTS, HEADS, HEAD_DIM, LANES)
        d_offset += d_logits
    if HAS_BIAS:
        slot = tl.arange(0, SLOTS)
        inside = (slot < ROWS * COLS)[:, None] & (slot < ROWS * COLS)[None, :]
        at = ((program * HEADS + head) * ROWS * COLS + slot[:, None]) * ROWS * COLS + slot[None, :]
        tl.store(d_bias + at, d_offset, mask=inside)


@triton.jit
@no_type_check
def _place(
    number,
    B: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    GRID: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Places of the slots of a window: the token's number, whether there is a token, and its side
    of the seam (`windows.Axis`).
    """
    row_windows: tl.constexpr = (H + ROWS - 1) // ROWS
    col_windows: tl.constexpr = (W + COLS - 1) // COLS
    slot = tl.arange(0, SLOTS)
    image = number // (row_windows * col_windows)
    window = number % (row_windows * col_windows)
    if GRID:
        row = slot // COLS * row_windows + window // col_windows
        col = slot % COLS * col_windows + window % col_windows
    else:
        row = (window // col_windows * ROWS + slot // COLS + DOWN) % (row_windows * ROWS)
        col = (window % col_windows * COLS + slot % COLS + RIGHT) % (col_windows * COLS)
    token = (image * H + row) * W + col
    is_token = (slot < ROWS * COLS) & (row < H) & (col < W) & (token < B * H * W)
    side = (row < DOWN).to(tl.int32) * 2 + (col < RIGHT).to(tl.int32)
    return token, is_token, side


@triton.jit
@no_type_check
def _at(token, head, PART: tl.constexpr, PARTS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    return (((token * PARTS + PART) * HEADS + head) * HEAD_DIM)[:, None] + lane[None, :], (lane < HEAD_DIM)[None, :]


@triton.jit
@no_type_check
def _load(
    array,
    token,
    wanted,
    head,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
):
    at, inside = _at(token, head, PART, PARTS, HEADS, HEAD_DIM, LANES)
    return tl.load(array + at, mask=wanted[:, None] & inside, other=0.0)


@triton.jit
@no_type_check
def _store(
    array,
    x,
    token,
    is_token,
    head,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
):
    at, inside = _at(token, head, PART, PARTS, HEADS, HEAD_DIM, LANES)
    tl.store(array + at, x.to(array.dtype.element_ty), mask=is_token[:, None] & inside)


@triton.jit
@no_type_check
def _seen(mask, token, is_token, HAS_MASK: tl.constexpr):
    seen = is_token
    if HAS_MASK:
        seen = is_token & (tl.load(mask + token, mask=is_token, other=0) != 0)
    return seen


@triton.jit
@no_type_check
def _load_bias(bias, head, NUM_SLOTS: tl.constexpr, HAS_BIAS: tl.constexpr, SLOTS: tl.constexpr):
    """The bias of a head, [SLOTS, SLOTS], in units of log 2.

    NO_KEY where the key's slot is outside the window.
    """
    slot = tl.arange(0, SLOTS)
    query = slot[:, None]
    key = slot[None, :]
    offset = tl.zeros((SLOTS, SLOTS), tl.float32)
    if HAS_BIAS:
        at = (head * NUM_SLOTS + query) * NUM_SLOTS + key
        offset += tl.load(bias + at, mask=(query < NUM_SLOTS) & (key < NUM_SLOTS), other=0.0).to(tl.float32) * LOG2E
    return tl.where(key < NUM_SLOTS, offset, NO_KEY)


@triton.jit
@no_type_check
def _weights(q, k, offset, seen, side, SHIFTED: tl.constexpr, SCALE: tl.constexpr, HAS_MASK: tl.constexpr):
    """Softmax before its division, [SLOTS, SLOTS], and what to divide by, [SLOTS]."""
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * (SCALE * LOG2E) + offset
    if SHIFTED:
        logits += tl.where(side[:, None] == side[None, :], 0.0, SHIFT_PENALTY * LOG2E)
    logits = tl.where(seen[None, :], logits, NO_KEY)
    weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
    if HAS_MASK:
        weights = tl.where(logits > NO_KEY / 2, weights, 0.0)  # a query that sees no key gets zeros
    return weights, tl.maximum(tl.sum(weights, 1), TINY)

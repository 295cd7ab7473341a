"""Window attention on NVIDIA GPUs in Triton proper, called by jax-triton, which JAX names as
successor of Pallas's Triton lowering.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import triton_call
from pallas_kernels.window_attention import gpu
from pallas_kernels.window_attention.gpu import Problem

_NOTHING = ((1,), jnp.float32)  # shape and dtype of the placeholder for an array that is absent; it is neither read nor written


def unsupported_reason(*arrays, interpret: bool = False, **options) -> str | None:
    """Why the kernels of both operators cannot run these arguments here, or None."""
    if interpret and arrays[0].dtype == jnp.bfloat16:
        return "Triton's interpreter multiplies no bfloat16"
    return gpu.unsupported_reason(*arrays, interpret=interpret, **options) or triton_call.missing(interpret=interpret)


def _forward(arrays, bias, mask, problem: Problem, interpret: bool):
    b, h, w, _, heads, head_dim = problem.shape
    (out,) = _call("forward", arrays, bias, mask, (), [((b, h, w, 1, heads, head_dim), arrays[0].dtype)], problem, interpret)
    return out


def _backward(arrays, bias, mask, d_out, problem: Problem, interpret: bool):
    heads, slots = problem.shape[4], problem.windows.num_slots
    d_arrays = [(x.shape, x.dtype) for x in arrays] + [_NOTHING] * (3 - len(arrays))
    d_bias = _NOTHING if bias is None else ((problem.programs(backward=True), heads, slots, slots), jnp.float32)
    *d_arrays, d_bias = _call("backward", arrays, bias, mask, (d_out,), [*d_arrays, d_bias], problem, interpret)
    return tuple(d_arrays[: len(arrays)]), d_bias


window_attention, window_attention_qkv = gpu.operators(_forward, _backward)


def _call(name: str, arrays, bias, mask, more, results, problem: Problem, interpret: bool) -> list[jax.Array]:
    from pallas_kernels.window_attention import triton_kernels

    backward = name == "backward"
    tiles = problem.tiles(backward=backward)
    nothing = jnp.zeros(*_NOTHING)
    given = (*arrays * (3 // len(arrays)), nothing if bias is None else bias, nothing if mask is None else mask.astype(jnp.int8), *more)
    return triton_call.triton_call(
        getattr(triton_kernels, name),
        given,
        [jax.ShapeDtypeStruct(*x) for x in results],
        programs=problem.programs(backward=backward) * problem.shape[4],
        constants=constants(problem, bias is not None, mask is not None, backward=backward),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        interpret=interpret,
    )


def constants(problem: Problem, has_bias: bool, has_mask: bool, *, backward: bool) -> dict[str, Any]:
    """Constants of a compiled kernel, by the name of the argument."""
    b, h, w, parts, heads, head_dim = problem.shape
    rows, cols = problem.windows.rows, problem.windows.cols
    return {
        **{"B": b, "H": h, "W": w, "PARTS": parts, "HEADS": heads, "HEAD_DIM": head_dim},
        **{"ROWS": rows.window, "COLS": cols.window, "DOWN": rows.shift, "RIGHT": cols.shift, "GRID": rows.grid},
        **{"SCALE": problem.scale, "HAS_BIAS": has_bias, "HAS_MASK": has_mask},
        **dict(zip(("SLOTS", "LANES"), problem.tile, strict=True)),
        "PROGRAMS": problem.programs(backward=backward),
        "WINDOWS_PER_PROGRAM": problem.tiles(backward=backward).windows_per_program,
    }

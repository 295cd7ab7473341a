"""The Triton kernels compile for absent GPUs, and JAX accepts them.

Their values are compared in test_window_attention.py.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra `cuda13`, Python 3.12)"),
]

COMPILE = """
    import json
    import sys

    import jax.numpy as jnp
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pallas_kernels.window_attention import triton_gpu, triton_kernels
    from pallas_kernels.window_attention.gpu import Problem
    from pallas_kernels.window_attention.windows import Windows

    capability, parts, shift, grid, has_bias, has_mask, head_dim, dtype = json.loads(sys.argv[1])
    shape = (2, 15, 16, parts, 3, head_dim)
    problem = Problem(Windows.of((15, 16), (7, 7), (shift, shift), grid), shape, (0, 1, 2) if parts == 3 else (0, 0, 0), 0.5, 2)
    for name in ("forward", "backward"):
        kernel, constants = getattr(triton_kernels, name), triton_gpu.constants(problem, has_bias, has_mask, backward=name == "backward")
        pointers = kernel.arg_names[: -len(constants)]
        assert kernel.arg_names[len(pointers) :] == list(constants)
        kinds = {"bias": "*fp32", "d_bias": "*fp32", "mask": "*i8"}
        signature = {x: kinds.get(x, {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}[dtype]) for x in pointers}
        source = ASTSource(
            fn=kernel,
            signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs={(kernel.arg_names.index(x),): value for x, value in constants.items()},
        )
        tiles = problem.tiles(backward=name == "backward")
        options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        print(json.dumps({"name": name, "cubin": len(compiled.asm["cubin"]), "shared": compiled.metadata.shared}))
"""

TRACE = """
    import jax
    import jax.numpy as jnp
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec as P

    from pallas_kernels.window_attention import window_attention, window_attention_qkv
    from tests.pallas_kernels.test_window_attention import SHAPES

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=1, platform="gpu")
    arrays, options = SHAPES["masked_and_shifted"].arguments(jnp.bfloat16)
    arrays, mask, bias = tuple(x[:2] for x in arrays), options.pop("mask")[:2], options.pop("bias")

    def grads(arrays, bias, mask):
        def total(arrays, bias):
            whole = window_attention(*arrays, bias=bias, mask=mask, **options, implementation="triton")
            fused = window_attention_qkv(jnp.stack(arrays, 3), bias=bias, mask=mask, **options, implementation="triton")
            return (whole.astype(jnp.float32) + fused.astype(jnp.float32)).sum()

        return jax.grad(total, (0, 1))(arrays, bias)

    stacked = jax.tree.map(lambda x: jnp.stack([x, x, x]), (arrays, bias, mask))
    one = AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(one):
        d_arrays, d_bias = jax.eval_shape(jax.jit(grads), arrays, bias, mask)
        assert [x.shape for x in d_arrays] == [x.shape for x in arrays] and d_bias.shape == bias.shape
        _, d_biases = jax.eval_shape(jax.jit(jax.vmap(grads)), *stacked)
        assert d_biases.shape == (3, *bias.shape)
    four = AbstractMesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2, abstract_device=device)
    with jax.sharding.use_abstract_mesh(four):  # shard_map checks what varies over which axis
        _, d_bias = jax.eval_shape(jax.jit(grads), arrays, bias, mask)
        assert d_bias.shape == bias.shape
    print("traced")
"""


def run(script: str, *args: str) -> str:
    """Runs a script in a process of its own, in which kernels are compiled, not interpreted."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), env.get("PYTHONPATH", "")])
    # Triton reads the sources of its kernels, which pytest's shape checker would change; so the
    # process is a plain one.
    lines = [line.removeprefix("    ") for line in script.splitlines()]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), *args], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


# (compute capability, parts, shift, grid, bias, mask, head_dim, dtype) for an A100 and an H100.
CASES = [
    (90, 1, 3, False, True, True, 32, "bfloat16"),
    (90, 3, 0, True, False, False, 128, "float16"),
    (80, 3, 3, False, True, False, 24, "float32"),
]


@pytest.mark.parametrize("case", CASES)
def test_both_passes_compile(case):
    lines = [json.loads(line) for line in run(COMPILE, json.dumps(case)).splitlines()]
    assert [line["name"] for line in lines] == ["forward", "backward"]
    limit = {90: 227, 80: 163}[case[0]] * 1024  # shared memory of a block, CUDA C programming guide
    assert all(line["cubin"] > 0 and line["shared"] <= limit for line in lines), lines


@pytest.mark.skipif(importlib.util.find_spec("jax_triton") is None, reason="jax-triton is not installed (extra `cuda13`, Python 3.12)")
def test_jax_takes_them_under_grad_vmap_and_shard_map():
    assert run(TRACE) == "traced\n"

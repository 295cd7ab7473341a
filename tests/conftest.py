"""What every test runs under: the CPU, quick compilation, a compilation cache in the checkout. Subprocesses that tests start inherit it."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "allow")
# What is computed is small, and compiling it takes the time: twice as long with the optimizations that users get ("false").
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Triton kernels, where Triton is installed, run on the host; it wants to be told before it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import jax

# Compiling a network for the CPU takes three times as long with XLA's fusion emitters. Newer versions are quicker, and refuse the flag.
# A program is not split into parts to be compiled side by side: the workers have the cores, and splitting takes a twentieth of the time.
if jax.__version_info__ < (0, 11):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

# Tracing makes objects by the million, few of them garbage: looking for it every 700 objects takes a fifth of the time.
gc.set_threshold(50_000, 10, 10)

"""What every test runs under: the CPU, strict shapes, a compilation cache in the checkout."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "allow")

import jax
import pytest

# What runs at full size, or is measured, is compiled as in use; the rest is small, and compiling it is what takes the time.
_OPTIMISED = ("weights", "pallas_kernels")


@pytest.fixture(autouse=True, scope="session")
def _compile_quickly():
    """Subprocesses that tests start inherit this."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"


@pytest.fixture(autouse=True)
def _optimise_what_is_large(request):
    folder = pathlib.Path(request.node.path).parent.name
    jax.config.update("jax_disable_most_optimizations", folder not in _OPTIMISED)

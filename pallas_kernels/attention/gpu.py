"""Attention on NVIDIA GPUs, by cuDNN's fused kernels through `jax.nn.dot_product_attention`.

In training cuDNN takes only even numbers of queries and keys. Odd numbers are padded by one, and
the kernels are told the true lengths.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.gpu import wrong_platform
from pallas_kernels.sharding import by_images, indivisible
from pallas_kernels.target import is_elsewhere

DTYPES = ("float16", "bfloat16")
MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 128, 8
MIN_CAPABILITY = 8.0  # compute capability of an A100


def attention(query, key, value, *, bias, mask, is_causal, scale, return_logsumexp) -> Float[Array, "b n heads head_dim"]:
    """The operator on canonical arguments."""
    del bias, mask, return_logsumexp  # `unsupported_reason` has refused them

    def on_device(arrays, *_):
        return _cudnn(arrays, is_causal, scale)

    return by_images(on_device, (query, key, value), None, None, heads=True)


def _cudnn(arrays, is_causal: bool, scale: float) -> Array:
    query, key, value = arrays
    b, n, m = *query.shape[:2], key.shape[1]
    if n % 2 == m % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal, scale=scale, implementation="cudnn")
    query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in arrays)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=jnp.full(b, n, jnp.int32),
        key_value_seq_lengths=jnp.full(b, m, jnp.int32),
        is_causal=is_causal,
        scale=scale,
        implementation="cudnn",
    )
    return out[:, :n]


def unsupported_reason(*arrays: Array, bias, mask, return_logsumexp, **_) -> str | None:
    """The reason why cuDNN cannot run these arguments on this GPU, or None.

    When compiling for a GPU of another machine, only the arguments are checked; JAX's CUDA packages
    must be installed.
    """
    if reason := wrong_platform(interpret=False) or indivisible(arrays[0].shape[0]):
        return reason
    if not is_elsewhere() and float(capability := jax.devices()[0].compute_capability) < MIN_CAPABILITY:
        return f"a compute capability of {capability} is below {MIN_CAPABILITY}"
    return unsupported_arrays(*arrays, bias=bias, mask=mask, return_logsumexp=return_logsumexp)


def unsupported_arrays(*arrays: Array, bias, mask, return_logsumexp) -> str | None:
    """The reason why no version of cuDNN takes these arguments, or None."""
    if (dtype := arrays[0].dtype.name) not in DTYPES:
        return f"dtype {dtype} is not one of {', '.join(DTYPES)}"
    if (head_dim := arrays[0].shape[-1]) % HEAD_DIM_MULTIPLE or head_dim > MAX_HEAD_DIM:
        return f"{head_dim=} is not a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}"
    if bias is not None or mask is not None:
        return "it is called without bias and mask: it rounds a bias to 16 bits, and a query that sees no key gets no zeros"
    return "it does not return the logsumexp" if return_logsumexp else None

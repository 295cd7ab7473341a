"""A model as one StableHLO program: images in, logits out, the weights inside."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from pallas_kernels import target
from vitlab.runs.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")


def predictor(trained: Trained) -> Callable[[UInt8[Array, "b h w c"]], Float[Array, "b classes"]]:
    """Returns the exported function: pixels 0 to 255 of any number of images -> logits.

    The model processes one image at a time, under `jax.vmap`: code that compares sizes could not be
    traced for a batch of unknown size.
    """

    def logits(image: Array) -> Array:
        return trained.model.apply(trained.weights, image[None])[0][0]

    return jax.vmap(logits)


def to_stablehlo(trained: Trained) -> bytes:
    """Serializes `predictor` by `jax.export` for CPU, CUDA and TPU.

    The program has no kernel of this project, since each kernel is made for one platform. Run it
    with `jax.export.deserialize(data).call(images)`, or give its `mlir_module()` to another
    compiler.

    Args:
      trained: A model with its weights, which become constants of the program.

    Returns:
      A program: uint8 [b, height, width, channels] -> float32 [b, classes], for any b.
    """
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *trained.model.preprocessing.image_size, trained.channels), jnp.uint8)
    with target.assume("any"):
        return bytes(export.export(jax.jit(predictor(trained)), platforms=PLATFORMS)(images).serialize())

"""A model as an ONNX graph, converted by jax2onnx (extra `onnx`, see setup.py)."""

import logging

import jax
import jax.numpy as jnp
from jax.extend import core

from pallas_kernels import target
from vitlab.runs.trained import Trained


def to_onnx(trained: Trained, batch_size: int) -> bytes:
    """Converts the model, with its weights and the normalisation of pixels, for one batch size.

    The model is traced before the converter sees it: jax2onnx 0.17 replaces functions of
    `jax.numpy` while it traces, and some of its replacements refuse arguments that this project
    uses. Its rules for primitives compare sizes, so that the batch size must be fixed.

    Args:
      trained: A model with its weights, which become constants of the graph.
      batch_size: Images of each call, at least 1.

    Returns:
      An ONNX file: uint8 [batch_size, height, width, channels] -> float32 [batch_size, classes].

    Raises:
      ImportError: jax2onnx is missing.
      ValueError: The graph exceeds the 2 GiB of a file, or has an operation that the converter
        lacks.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ImportError('it needs jax2onnx: pip install "vitlab[onnx]", then pip install --no-deps jax2onnx') from error
    images = jax.ShapeDtypeStruct((batch_size, *trained.model.preprocessing.image_size, trained.channels), jnp.uint8)
    with target.assume("any"):
        program = core.jaxpr_as_fun(jax.make_jaxpr(lambda x: trained.model.apply(trained.weights, x)[0])(images))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of the unknown type of every constant shape
    try:
        graph = jax2onnx.to_onnx(lambda x: program(x)[0], [images], return_mode="proto", model_name=str(trained.origin["model"]))
    except (NotImplementedError, TypeError) as error:
        raise ValueError(f"jax2onnx cannot convert this model: {error}") from error
    return graph.SerializeToString()

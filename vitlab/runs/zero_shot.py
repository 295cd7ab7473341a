"""Zero-shot classification: an image tower whose classes are texts (Radford et al.,
arXiv:2103.00020, section 3.1).

Each class is the mean of the vectors of its prompts, each of length one, made of length one again.
The result is a model like any other, whose logits are the scaled cosines of an image with all
classes: it is evaluated, predicts and is exported as a trained one is.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vitlab.config import ConfigError, Experiment, refusing
from vitlab.functional import functional
from vitlab.models.catalogue import address_of
from vitlab.models.contract import Images, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.text_tower import TextConfig, TextTower, text_config_of
from vitlab.parallel.mesh import place
from vitlab.runs.arguments import read_lines
from vitlab.runs.trained import Trained, image_model
from vitlab.weights.hub import beside
from vitlab.weights.load import load_weights, read_source
from vitlab.weights.reading import Checkpoint
from vitlab.weights.tokenizer import FILES, Tokenizer, read_tokenizer

logger = logging.getLogger(__name__)

# The field of the tower's config that a tensor of these names has rows of.
_ROWS = {
    "token_embedding.weight": "vocab_size",
    "positional_embedding": "length",
    "text.token_embedding.weight": "vocab_size",
    "text.positional_embedding": "length",
    "text_model.embeddings.token_embedding.weight": "vocab_size",
    "text_model.embeddings.position_embedding.weight": "length",
    "txt/Embed_0/embedding": "vocab_size",
    "txt/pos_embedding": "length",
}
TEMPLATES = ("a photo of a {}.",)  # prompts of a class where the user gives none
_TEXTS = 64  # texts that go through the tower at once


class ZeroShot(nnx.Module):
    """An image tower and the vectors of classes."""

    def __init__(self, tower: VisionModel[Any], classes: Float[Array, "classes d"], scale: float):
        self.tower = tower
        self.classes = nnx.Param(scale * classes.T)  # [d, classes]

    @property
    def preprocessing(self) -> Preprocessing:
        """The tower's."""
        return self.tower.preprocessing

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """The tower's."""
        return self.tower.feature_info

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The tower's."""
        return self.tower.features(images, train=train, rngs=rngs)

    def __call__(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "b classes"]:
        return unit(self.tower(images, train=train, rngs=rngs)) @ self.classes[...]


def unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Vectors made of length one."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@nnx.jit
def _vectors(tower: TextTower, tokens: Array) -> Array:
    return unit(tower(tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """A text tower with its weights and vocabulary."""

    tower: TextTower
    tokenizer: Tokenizer
    scale: float  # factor of the cosines, the inverse of the temperature

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Vectors of texts, each of length one."""
        tokens = self.tokenizer(texts)
        filled = np.pad(tokens, ((0, -len(tokens) % _TEXTS), (0, 0)), mode="edge")  # one shape, one program
        parts = [np.asarray(_vectors(self.tower, jnp.asarray(filled[i : i + _TEXTS]))) for i in range(0, len(filled), _TEXTS)]
        return np.concatenate(parts)[: len(texts)]

    def classes(self, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Float[np.ndarray, "classes d"]:
        """Vectors of classes, each of length one: the mean over the templates, in each of which the
        name stands for {}.
        """
        prompts = self([template.replace("{}", name) for name in names for template in templates])
        mean = prompts.reshape(len(names), len(templates), -1).mean(1)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def load_texts(name: str, source: str | Checkpoint, vocabulary: str | pathlib.Path | None = None) -> Texts:
    """The text tower beside an image tower of the zoo.

    Args:
      name: The image tower, such as "clip_base_patch16".
      source: The file with both towers, as `vitlab.load_weights` takes it, or what `read_source`
        gave.
      vocabulary: The vocabulary file or its folder; None: it lies beside the weights, in a folder
        or on the hub.

    Raises:
      ValueError: The model has no text tower, or file, tower and vocabulary do not fit; the message
        names the tensor.
      FileNotFoundError, ImportError, OSError: A file, or the library that reads it, is missing.
    """
    config = text_config_of(name)
    tokens = pathlib.Path(vocabulary).expanduser() if vocabulary else _beside(source)
    checkpoint = read_source(source) if isinstance(source, str) else source
    config = _with_rows(config, checkpoint)
    tower = nnx.eval_shape(lambda: TextTower(config, rngs=nnx.Rngs(0)))
    report = load_weights(tower, checkpoint)
    logger.info("text tower of %s: %s", name, report)
    return Texts(tower=tower, tokenizer=read_tokenizer(tokens, config), scale=_scale(checkpoint))


def _beside(source: str | Checkpoint) -> pathlib.Path:
    """The vocabulary beside the weights.

    Raises:
      FileNotFoundError: None is known to be there.
    """
    if isinstance(source, str):
        found = beside(source, FILES)
        if found is not None:
            return found
    raise FileNotFoundError(
        f"no vocabulary beside {source if isinstance(source, str) else source.origin}: name it, one of {', '.join(FILES)}"
    )


def _with_rows(config: TextConfig, checkpoint: Checkpoint) -> TextConfig:
    """The config with the file's number of tokens and of positions, in which files of one network
    differ.

    Raises:
      ValueError: The file has no embedding of tokens.
    """
    rows, tensors = {}, checkpoint.tensors
    for found in tensors:
        field = next((field for name, field in _ROWS.items() if found == name or found.endswith(f"/{name}")), None)
        if field is not None and len(shape := tensors[found].shape) > 1:
            rows[field] = shape[-2]
    if "vocab_size" not in rows:
        names = "token_embedding.weight under any of the names of OpenAI, OpenCLIP, Hugging Face or big_vision"
        raise ValueError(f"{checkpoint.origin} has no text tower, {names}: take the file that has both towers")
    return dataclasses.replace(config, **rows)


def _scale(checkpoint: Checkpoint) -> float:
    """The factor of the cosines, whose logarithm is a parameter of the pair.

    Raises:
      ValueError: The file has none.
    """
    for name in checkpoint.tensors:
        if name.rpartition("/")[2] in ("logit_scale", "t") or name.endswith(".logit_scale"):
            return math.exp(float(np.asarray(checkpoint.tensors[name], np.float64).reshape(-1)[0]))
    raise ValueError(f"{checkpoint.origin} has no logit_scale: it is no file of an image and a text tower")


def zero_shot(
    name: str,
    path: str,
    experiment: Experiment,
    class_names: Sequence[str],
    mesh: Mesh,
    *,
    words: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    vocabulary: pathlib.Path | None = None,
) -> Trained:
    """A classifier made of the two towers of a file.

    Args:
      name: The image tower.
      path: The file with both towers.
      experiment: Whose model may have another image size.
      class_names: Names in results, in the order of the labels.
      mesh: Over which the weights are laid.
      words: What the classes are called in prompts; None: `class_names`.
      templates: Prompts, with {} for the class.
      vocabulary: See `load_texts`.

    Raises:
      ConfigError: See `load_texts`.
    """
    with refusing(ValueError, OSError, ImportError):
        source = address_of(name, path)
        checkpoint = read_source(source)
        texts = load_texts(name, checkpoint, vocabulary or _beside(source))
        tower = image_model(name, experiment, path)
        load_weights(tower, checkpoint)
        classes = texts.classes(words or class_names, templates)
    if classes.shape[1] != (width := _width(tower)):
        raise ConfigError(f"{path}: the text tower gives {classes.shape[1]} numbers, the image tower {width}")
    fn, weights = functional(ZeroShot(tower, jnp.asarray(classes), texts.scale))
    return Trained(
        model=fn,
        weights=place(weights, mesh, fn.tensor_split),
        experiment=experiment,
        channels=experiment.model.in_channels or 3,
        class_names=tuple(class_names),
        origin={"model": name, "weights": path, "templates": len(templates)},
    )


def _width(tower: VisionModel[Any]) -> int:
    size = (1, *tower.preprocessing.image_size, tower.config.in_channels)
    return nnx.eval_shape(lambda model, x: model(x), tower, jax.ShapeDtypeStruct(size, jnp.float32)).shape[-1]


def read_templates(path: pathlib.Path | None) -> tuple[str, ...]:
    """The prompts of a file, or the one that is used without.

    Raises:
      ConfigError: See `read_lines`; or a line has no place for the class.
    """
    if path is None:
        return TEMPLATES
    lines = read_lines(path, "--templates")
    if without := [line for line in lines if line.count("{}") != 1]:
        raise ConfigError(f'--templates={path}: the line "{without[0]}" must have {{}} once, where the name of the class stands')
    return lines

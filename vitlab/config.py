"""The experiment: one tree of frozen dataclasses, and its way to and from `ml_collections` and JSON.

A config file's `get_config(variant)` returns `to_config_dict(Experiment(...))`: every key exists, is typed and can be
overridden with `--config.a.b=x`. Inside the program only the frozen dataclasses travel.

A duration is a string: "90 epochs", "5000 steps", "1e6 examples" or "5 percent" (of the whole run).
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import ml_collections
from ml_collections import config_dict

_UNITS = {"step": 1, "steps": 1, "epoch": 2, "epochs": 2, "example": 3, "examples": 3, "percent": 4, "%": 4}
_DURATION = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-z%]+)\s*")


class ConfigError(ValueError):
    """The experiment asks for something that cannot be; the message names the rule and the remedy."""


def parse_duration(text: str) -> tuple[float, str]:
    """Splits "90 epochs" into (90.0, "epochs").

    Raises:
      ConfigError: The text is not a positive number and one of steps, epochs, examples, percent.
    """
    match = _DURATION.fullmatch(text)
    if not match or match[2] not in _UNITS or float(match[1]) < 0:
        raise ConfigError(f'duration "{text}" must be a number and a unit: "90 epochs", "500 steps", "1e6 examples", "5 percent"')
    unit = match[2].rstrip("s") if match[2] != "%" else "percent"
    return float(match[1]), unit


def duration_in_steps(text: str, *, batch_size: int, examples_per_epoch: int, total_steps: int | None = None) -> int:
    """Counts the steps of a duration, rounded to the nearest.

    Args:
      text: A number and a unit, see the module.
      batch_size: Images per step.
      examples_per_epoch: Images in the training split.
      total_steps: Steps of the whole run; needed for percent.

    Raises:
      ConfigError: The text is malformed, or percent is asked where the whole run is what is being defined.
    """
    value, unit = parse_duration(text)
    if unit == "percent":
        if total_steps is None:
            raise ConfigError(f'duration "{text}" is a share of the whole run; say the whole run in steps, epochs or examples')
        return round(value / 100 * total_steps)
    examples = {"step": batch_size, "epoch": examples_per_epoch, "example": 1}[unit]
    return round(value * examples / batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What `vitlab.create_model` is called with; further keys in the file are fields of the model's family."""

    name: str = "vit_small_patch16"  # <family>_<variant>, see `python -m vitlab.models`
    num_classes: int | None = None  # None: as many as the data has
    image_size: int | None = None  # pixels per side; None: the variant's
    in_channels: int | None = None  # None: 3 with `weights` of a file, otherwise 3 if an image is in colour, 1 if all are grey
    drop_path_rate: float | None = None  # of the last block, rising linearly from 0; None: the variant's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters, norms and softmax stay float32
    # What training begins with: a run (runs/a, or runs/a@3000 for a step), .safetensors, .npz, .pth (FILE#ENTRY takes a part of it)
    # or hf://owner/name. A head for other classes begins anew; None: random weights.
    weights: str | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the family's own, flattened in the ConfigDict


SourceKind = Literal["bundled", "image_folder", "tfds", "shards"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Further training images, of the same classes and channels; the fields are those of `DataConfig`."""

    source: SourceKind = "bundled"
    data_dir: str | None = None
    name: str | None = None
    train_split: str = "train"
    follow_outside: bool = False
    weight: int = 1

    def __post_init__(self):
        if self.weight < 1:
            raise ConfigError(f"data.more_sources: weight={self.weight} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they reach the device."""

    source: SourceKind = "bundled"
    data_dir: str | None = (
        None  # image_folder: its root or a CSV of path,label, here or at gs://; shards: the folder; tfds: where the prepared datasets lie
    )
    name: str | None = None  # tfds: the dataset, "cifar10" or "imagenet2012:5.1.0"
    train_split: str = "train"  # of the source; tfds slices such as "train[:99%]" are allowed
    eval_split: str = "test"  # image_folder and shards also take "val"
    follow_outside: bool = False  # image_folder: whether a CSV or symbolic links may lead to files outside data_dir
    weight: int = 1  # with more_sources: of so many training images as the weights add up to, these are of the source above
    more_sources: tuple[SourceConfig, ...] = ()  # mixed in by weight; an epoch is as many images as all have; evaluation is without them
    num_threads: int = 0  # that decode and augment; 0: one per core
    num_workers: int = 0  # processes that decode and augment; 0: only threads
    max_bad_fraction: float = 0.01  # share of undecodable images above which the run stops
    max_image_bytes: int = 2**28  # of an image's decoded pixels (2**28: 67 megapixels of RGBA); larger ones count as undecodable
    background: tuple[int, int, int] = (255, 255, 255)  # RGB under transparent pixels, each in [0, 255]; the default is white
    sampling: Literal["uniform", "balanced"] = "uniform"  # training images: all alike, or each class as often as any other

    def __post_init__(self):
        if self.weight < 1:
            raise ConfigError(f"data.weight={self.weight} must be at least 1")
        if self.max_image_bytes < 1:
            raise ConfigError(f"data.max_image_bytes={self.max_image_bytes} must be at least 1")
        if not all(0 <= value <= 255 for value in self.background):
            raise ConfigError(f"data.background={self.background} must be three integers in [0, 255]")
        if self.sampling == "balanced" and self.more_sources:
            raise ConfigError('data.sampling="balanced" cannot be had with data.more_sources, which have weights of their own')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What a training image goes through: on the host in uint8, erasing on the device; evaluation resizes and crops the centre."""

    crop: Literal["random_resized", "pad", "center"] = "random_resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)  # random_resized: share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random_resized: width over height
    pad: int = 4  # pad: pixels (at the target size) added on each side before the random crop
    flip: bool = True  # left to right, with probability 1/2
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"  # of crop and policy; random: one of the two for each image
    policy: str | None = None  # "rand-m9-mstd0.5-inc1", "original", "v0", "augmix-m3", "3a"; see `vitlab.data.policies`
    color_jitter: float = 0.0  # of brightness, contrast and saturation, after the policy
    erase_prob: float = 0.0  # that a rectangle becomes noise; see `vitlab.train.erase`
    repeats: int = 1  # copies of an image, one after the other and each augmented on its own; an epoch has as many images as without

    def __post_init__(self):
        if self.color_jitter < 0 or not 0 <= self.erase_prob <= 1 or self.repeats < 1:
            raise ConfigError(
                f"augment.color_jitter={self.color_jitter} must be at least 0, augment.erase_prob={self.erase_prob} in [0, 1], "
                f"augment.repeats={self.repeats} at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its schedule behind a linear warm-up, and what sets parameters apart.

    Biases, norms, tokens and position embeddings do not decay. See `vitlab.train.optimizer`, `schedule` and `groups`.
    """

    name: Literal["adamw", "lamb", "lion", "sgd", "adafactor", "muon", "schedule_free_adamw"] = "adamw"
    schedule: Literal["cosine", "linear", "step", "constant", "rsqrt", "wsd"] = "cosine"
    peak_lr: float = 1e-3  # at the end of the warm-up, for the whole batch
    end_lr: float = 0.0  # at the end of the run; step and constant do not end there
    warmup: str = "5 epochs"
    cooldown: str = "0 steps"  # wsd and rsqrt: the line down to end_lr, at the end of the run
    decay_every: str = "30 epochs"  # step: between two drops; rsqrt: the timescale
    decay_factor: float = 0.1  # step: of a drop
    weight_decay: float = 0.05  # decoupled: multiplied by the learning rate
    beta1: float = 0.9  # sgd: the momentum
    beta2: float = 0.999
    momentum: float = 0.95  # muon's, for matrices
    eps: float = 1e-8
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment
    clip_norm: float | None = 1.0  # global norm of the gradient; None: no clipping
    layer_decay: float = 1.0  # of the learning rate, for each block below the head; 1: none
    groups: tuple[str, ...] = ()  # "REGEX [lr=FACTOR] [decay=on|off] [frozen]"; each parameter in exactly one; (): no groups

    def __post_init__(self):
        for name in ("warmup", "cooldown", "decay_every"):
            parse_duration(getattr(self, name))
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay={self.layer_decay} must be in (0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Images of a batch mixed with each other, on the device (timm's `Mixup`); see `vitlab.train.mix`."""

    mixup_alpha: float = 0.0  # of the Beta distribution of the share; 0: no mixup
    cutmix_alpha: float = 0.0  # 0: no cutmix
    prob: float = 1.0  # that a batch (or image, or pair) is mixed at all
    switch_prob: float = 0.5  # that it is cutmix, where both are on
    mode: Literal["batch", "pair", "elem"] = "batch"  # what draws its own share: the batch, each pair of images, each image

    def __post_init__(self):
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ConfigError(f"mix.{name}={getattr(self, name)} must be at least 0")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"mix.{name}={getattr(self, name)} must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A teacher, which the loss also follows; see `vitlab.losses.distilled_loss` and `vitlab.train.teacher`."""

    teacher: str = ""  # run folder of vitlab.train: the averaged weights where it has them; "": no teacher
    step: int | None = None  # of the teacher's checkpoint; None: the newest at each start of the run
    kind: Literal["soft", "hard"] = "soft"  # its probabilities, or its likeliest class as the label
    alpha: float = 0.5  # weight of the teacher's part of the loss; that of the labels' is 1 - alpha
    temperature: float = 1.0  # soft: by which the logits of both are divided

    def __post_init__(self):
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise ConfigError(
                f"loss.distillation.alpha={self.alpha} must be in [0, 1], loss.distillation.temperature={self.temperature} above 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Of the logits; targets are labels after smoothing and mixing."""

    kind: Literal["softmax", "sigmoid"] = "softmax"  # cross-entropy, or binary cross-entropy for each class
    label_smoothing: float = 0.0  # mass moved from the label to all classes evenly
    class_weights: Literal["none", "inverse", "inverse_sqrt"] = "none"  # by the class's number of training images, 1 on average over these
    distillation: DistillationConfig = DistillationConfig()

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing={self.label_smoothing} must be in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are laid out; groups of fsdp * tensor devices hold copies, each of its own part of the batch."""

    fsdp: int = 1  # devices among which large parameters and their optimizer state are split, each with its own images
    tensor: int = 1  # devices that work on the same images, each with its heads and hidden units of a block; not every family can

    def __post_init__(self):
        for name in ("fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mesh.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: everything that its result depends on."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mix: MixConfig = MixConfig()
    loss: LossConfig = LossConfig()
    mesh: MeshConfig = MeshConfig()
    batch_size: int = 1024  # images per step, over all devices
    duration: str = "90 epochs"  # of the whole run
    accumulation: int = 1  # parts of a batch that go through the model one after the other, to save memory
    ema_decay: float | None = None  # of an average of the weights that is evaluated beside them; None: there is none
    seed: int = 0  # of the parameters, the order of the images, augmentation, mixing, dropout and drop path
    log_every: str = "50 steps"
    eval_every: str = "1 epochs"
    eval_batch_size: int | None = None  # None: batch_size
    checkpoint_every: str = "1 epochs"
    keep_checkpoints: int = 2  # the newest ones
    keep_best: int = 1  # beside them: those with the highest top-1; an evaluation that is the best so far is always saved
    stop_after: str | None = None  # ends the run after so long without an evaluation better than all before, "10 epochs"; None: never
    keep_every: str | None = None  # beside them: the first of each such stretch, "10 epochs"
    nonfinite: Literal["stop", "skip"] = "stop"  # what a loss or gradient that is not finite does: end the run, or drop the update
    spike_factor: float | None = None  # under nonfinite="skip", drops updates whose gradient is so many times longer than usual
    max_skips: int = 10  # updates that may be dropped in a row, before the run ends

    def __post_init__(self):
        for name in ("duration", "log_every", "eval_every", "checkpoint_every"):
            parse_duration(getattr(self, name))
        for text in (self.keep_every, self.stop_after):
            if text is not None:
                parse_duration(text)
        least = {"batch_size": 1, "accumulation": 1, "keep_checkpoints": 1, "keep_best": 0, "max_skips": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {value}")
        if self.spike_factor is not None and (self.spike_factor <= 1 or self.nonfinite != "skip"):
            raise ConfigError(f'spike_factor={self.spike_factor} must be above 1, with nonfinite="skip"')
        if self.batch_size % self.accumulation:
            raise ConfigError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must be in (0, 1), or None")
        if self.ema_decay is not None and self.optimizer.name == "schedule_free_adamw":
            raise ConfigError('optimizer.name="schedule_free_adamw" averages the weights itself: set ema_decay=None')

    @property
    def averages(self) -> bool:
        """Whether the run keeps averaged weights beside its own."""
        return self.ema_decay is not None or self.optimizer.name == "schedule_free_adamw"


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Nested plain dict, JSON-serialisable but for tuples; the family's fields stand beside the model's own."""
    out = dataclasses.asdict(experiment)
    out["model"] |= out["model"].pop("fields")
    return out


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The `ConfigDict` a config file returns: typed, locked, with a placeholder for each None."""
    types_ = _leaf_types(Experiment)

    def convert(tree: Mapping, path: tuple[str, ...]) -> ml_collections.ConfigDict:
        out = ml_collections.ConfigDict()
        for key, value in tree.items():
            here = (*path, key)
            if isinstance(value, Mapping):
                out[key] = convert(value, here)
            elif value is None or (here in types_ and _optional(types_[here])):
                out[key] = config_dict.placeholder(_plain_type(types_.get(here, object)))
                out[key] = value
            else:
                out[key] = value
        return out

    return convert(to_dict(experiment), ()).lock()


def from_config_dict(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Experiment:
    """The experiment of a `ConfigDict` or of `config.json`.

    Raises:
      ConfigError: An unknown key (with its near misses) or a value of another type than the field's.
    """
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    return _build(Experiment, plain, ())


def to_json(experiment: Experiment) -> str:
    """The text of `config.json`; `from_config_dict(json.loads(text))` gives the experiment back."""
    return json.dumps(to_dict(experiment), indent=2) + "\n"


def difference(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """The leaves that differ: dotted path -> (old value, new value); an absent leaf counts as None."""
    a, b = (_flatten(json.loads(to_json(e))) for e in (old, new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def smoke(experiment: Experiment) -> Experiment:
    """The same experiment shrunk to seconds: 2 steps of 4 images of at most 48 pixels, float32, on the bundled data, without a teacher."""
    replace = dataclasses.replace
    data = replace(experiment.data, source="bundled", data_dir=None, name=None, train_split="train", eval_split="test[:8]", more_sources=())
    return replace(
        experiment,
        model=replace(experiment.model, dtype="float32", image_size=min(experiment.model.image_size or 48, 48)),
        data=replace(data, num_workers=0, num_threads=1),
        optimizer=replace(experiment.optimizer, warmup="1 steps", cooldown="0 steps"),
        loss=replace(experiment.loss, distillation=DistillationConfig()),  # a teacher knows other classes and sizes
        mesh=MeshConfig(),
        batch_size=4,
        accumulation=min(experiment.accumulation, 2),
        eval_batch_size=4,
        duration="2 steps",
        log_every="1 steps",
        eval_every="2 steps",
        checkpoint_every="2 steps",
    )


def near_misses(name: str, choices: Iterable[str]) -> str:
    """Text to append to an error about an unknown name: the closest choices, or all when they are few."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"choices: {', '.join(choices[:40])}" if choices else "there are none"


def _build(cls: type, tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    extra = {k: v for k, v in tree.items() if k not in fields or k == "fields"}
    values: dict[str, Any] = {}
    if "fields" in fields:
        values["fields"] = {k: _tuples(v) for k, v in extra.items()}
    elif extra:
        key = next(iter(extra))
        raise ConfigError(f"unknown key {'.'.join((*path, key))}: {near_misses(key, fields)}")
    for key, value in tree.items():
        if key in extra:
            continue
        values[key] = _value(value, hints[key], (*path, key))
    return cls(**values)


def _value(value: Any, hint: Any, path: tuple[str, ...]) -> Any:
    """A group of the tree or, with `typed`, one of its leaves."""
    if not dataclasses.is_dataclass(hint):
        return typed(value, hint, path)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{'.'.join(path)}={value!r} must be a group of keys: {', '.join(f.name for f in dataclasses.fields(hint))}")
    return _build(typing.cast(type, hint), value, path)


def typed(value: Any, hint: Any, path: tuple[str, ...]) -> Any:
    """`value` as `hint` (a class, Literal, union, or a tuple of such or of groups) or a ConfigError that names the key."""
    wrong = ConfigError(f"{'.'.join(path)}={value!r} must be {_type_name(hint)}")
    if get_origin(hint) in (typing.Union, types.UnionType):
        for choice in get_args(hint):
            with contextlib.suppress(ConfigError):
                return typed(value, choice, path)
        raise wrong
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise wrong
        return value
    if get_origin(hint) is tuple:
        hints = _hints_of_entries(hint, value)
        if hints is None:
            raise wrong
        return tuple(_value(v, h, path) for v, h in zip(value, hints, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise wrong
        return float(value)
    if not isinstance(value, get_origin(hint) or hint) or (hint is int and isinstance(value, bool)):
        raise wrong
    return value


def _hints_of_entries(hint: Any, value: Any) -> tuple[Any, ...] | None:
    """The type of each entry of a tuple, `tuple[X, ...]` or `tuple[X, Y]`; None if it is no sequence or has another length."""
    hints = get_args(hint)
    if not isinstance(value, (tuple, list)):
        return None
    if hints[1:] == (...,):
        return (hints[0],) * len(value)
    return hints if len(value) == len(hints) else None


def _leaf_types(cls: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    out = {}
    for key, hint in typing.get_type_hints(cls).items():
        here = (*path, key)
        out |= _leaf_types(hint, here) if dataclasses.is_dataclass(hint) else {here: hint}
    return out


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (typing.Union, types.UnionType) and type(None) in get_args(hint)


def _plain_type(hint: Any) -> type:
    return next(a for a in get_args(hint) if a is not type(None)) if _optional(hint) else hint


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out

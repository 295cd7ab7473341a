"""The experiment: one tree of frozen dataclasses.

The type of each key states its allowed values and its meaning; `python -m vitlab.config` prints all
of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from vitlab.bounds import Bounds, Count, Rate, Share
from vitlab.config.errors import ConfigError
from vitlab.config.group import Group, Length, LengthOrZero, Part
from vitlab.config.references import absolute

Images = Annotated[int, Bounds(1, 2**24)]
Channels = Annotated[int, Bounds(1, 1024)]
Threads = Annotated[int, Bounds(0, 1024)]
Level = Annotated[int, Bounds(0, 255)]
Weight = Annotated[int, Bounds(1, 10_000)]
LearningRate = Annotated[float, Bounds(0, 1e30)]  # float32 overflows beyond it
Momentum = Annotated[float, Bounds(0, 1, open_most=True)]
Positive = Annotated[float, Bounds(0, 1e6, open_least=True)]
Source = Annotated[str, Part(("bundled", "scenes", "photographs", "image_folder", "pairs", "coco", "table", "tars", "tfds", "shards"))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The model, as arguments of `vitlab.create_model`.

    Every further key is a field of the model's own family.
    """

    path: ClassVar = ("model",)

    name: Annotated[
        str,
        Part(None),
        "A variant of the zoo, <family>_<variant> (`python -m vitlab.models` lists them), or one of your own: "
        "package.module:variant or file.py:variant of a module that defines FAMILY.",
    ] = "vit_small_patch16"
    num_classes: Annotated[Count | None, "Width of the head; None takes the number of classes of the data."] = None
    image_size: Annotated[
        tuple[Count, Count] | Count | None, "Pixels, (height, width) or the side of a square; None takes the variant's own size."
    ] = None
    in_channels: Annotated[
        Channels | None,
        "Channels of the images, 1 for grey and 3 for RGB. None takes 3 with weights of a file, else 3 if an image has "
        "colour and 1 if all are grey, and what the data declares if it is another number.",
    ] = None
    mean: Annotated[
        tuple[Annotated[float, Bounds(-1e6, 1e6)], ...],
        "Mean of each channel in units of max_value, one for all or one each; () takes the variant's own.",
    ] = ()
    std: Annotated[tuple[Positive, ...], "Standard deviation of each channel in units of max_value, as mean."] = ()
    max_value: Annotated[
        Positive | None,
        "Sample value that counts as 1 before mean and std: 65535 for 16 bits, 1 for floating point. None takes 255, and must be "
        "replaced for images that have not 8 bits.",
    ] = None
    drop_path_rate: Annotated[
        Rate | None,
        "Probability that the last block is skipped for an image in training; it rises linearly from 0 at the first block. "
        "None takes the variant's own rate.",
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"], "Type of the computation; parameters, norms and softmax stay float32 in either case."
    ] = "float32"
    weights: Annotated[
        str | None,
        "Weights that training starts from: a run (runs/a, or runs/a@3000 for a step), a .safetensors, .npz or .pth file (FILE#ENTRY "
        "takes a part of it), hf://owner/name, or a short name of `python -m vitlab.models --weights`, such as dinov2. A head for other "
        "classes is initialised anew. None starts from random weights.",
    ] = None
    fields: Annotated[
        Mapping[str, Any], "Fields of the model's own family, written as keys of this group: --config.model.patch_size=8."
    ] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.image_size, tuple) and self.image_size[0] == self.image_size[1]:
            object.__setattr__(self, "image_size", self.image_size[0])  # one form for a square, so that a run finds its config unchanged
        object.__setattr__(self, "fields", {str(key): _absolute(value) for key, value in self.fields.items()})


def _absolute(value: Any) -> Any:
    """A field of a family, with absolute paths in its references to the user's own files."""
    if isinstance(value, str):
        parts = value.split(",")
        paths = [absolute(part.strip()) for part in parts]
        return ",".join(paths) if paths != [part.strip() for part in parts] else value
    if isinstance(value, Mapping):
        return {key: _absolute(entry) for key, entry in value.items()}
    return tuple(map(_absolute, value)) if isinstance(value, (list, tuple)) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig(Group):
    """The task that the model is trained for.

    Every further key is an option of the task itself; see docs/howto/tasks.md.
    """

    path: ClassVar = ("task",)

    name: Annotated[
        str,
        Part(None),
        "A file of vitlab/tasks, such as classification or segmentation, or one of your own: package.module:TASK or file.py:TASK of a "
        "module that defines TASK = Task(...).",
    ] = "classification"
    fields: Annotated[Mapping[str, Any], "Options of the task, written as keys of this group: --config.task.head=upernet."] = (
        dataclasses.field(default_factory=dict)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "fields", {str(key): _absolute(value) for key, value in self.fields.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig(Group):
    """Further training images, with the same classes and channels as those of the first source."""

    path: ClassVar = ("data", "more_sources")

    source: Annotated[Source, "Kind of this source, as data.source."] = "bundled"
    data_dir: Annotated[str | None, "Place of this source, as data.data_dir."] = None
    name: Annotated[str | None, "Name of this data set, as data.name."] = None
    files: Annotated[tuple[str, ...], "Files of each field of this source, as data.files."] = ()
    train_split: Annotated[str, "Split of this source, as data.train_split."] = "train"
    follow_outside: Annotated[bool, "Whether this source may lead outside of its folder, as data.follow_outside."] = False
    weight: Annotated[Weight, "Relative sampling weight of this source, as data.weight."] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The source of the images, and how they are read, decoded and sampled."""

    path: ClassVar = ("data",)

    source: Annotated[Source, "Kind of the source. A part of your own is a function (split, *, data_dir, name) -> Source."] = "bundled"
    data_dir: Annotated[
        str | None,
        "Place of the images. For image_folder, the root folder or a CSV of path,label, here or at gs://; for pairs, coco and tars, the "
        "root folder; for table, a CSV or TSV; for shards, their folder; for tfds, the folder of the prepared data sets.",
    ] = None
    name: Annotated[str | None, 'Name of the data set, for tfds: "cifar10" or "imagenet2012:5.1.0".'] = None
    files: Annotated[
        tuple[str, ...],
        'Place of each field of pairs, coco, table and tars: ("image=images/{split}/{stem}.jpg", "segmentation=maps/{split}/{stem}.png"); '
        "see `vitlab.data.field_files`. For tfds the feature of each field, see `vitlab.data.tfds_fields`.",
    ] = ()
    train_split: Annotated[str, 'Split of the source to train on; it may be a slice, "train[:99%]".'] = "train"
    eval_split: Annotated[str, 'Split of the source to evaluate on; image_folder and shards also have "val".'] = "test"
    follow_outside: Annotated[bool, "Whether a CSV or the symbolic links of an image_folder may lead to files outside data_dir."] = False
    weight: Annotated[Weight, "Relative sampling weight of the source above, beside the weights in more_sources."] = 1
    more_sources: Annotated[
        tuple[SourceConfig, ...],
        "Further sources of training images, mixed in by weight. One epoch is the total number of images of all sources; "
        "evaluation uses the first source only.",
    ] = ()
    num_threads: Annotated[Threads, "Number of threads that decode and augment; 0 takes one per core."] = 0
    num_workers: Annotated[Threads, "Number of processes that decode and augment; 0 uses threads of the run's own process only."] = 0
    max_bad_fraction: Annotated[Share, "Fraction of images that cannot be decoded above which the run stops."] = 0.01
    max_image_bytes: Annotated[
        Annotated[int, Bounds(1, 2**40)],
        "Bytes of an image's decoded pixels above which it counts as undecodable; the default is 67 megapixels of RGBA.",
    ] = 2**28
    background: Annotated[tuple[Level, Level, Level], "RGB colour under transparent pixels; the default is white."] = (255, 255, 255)
    sampling: Annotated[
        Literal["uniform", "balanced"], "Frequency of training images: equal for all images (uniform), or for all classes (balanced)."
    ] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling == "balanced" and self.more_sources:
            raise ConfigError('data.sampling="balanced" cannot be had with data.more_sources, which have weights of their own')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Group):
    """The augmentation of training images.

    It runs on the host in uint8, except erasing, which runs on the device. In evaluation images are
    resized and cropped at the centre.
    """

    path: ClassVar = ("augment",)

    crop: Annotated[
        Literal["random_resized", "random", "scale_jitter", "pad", "center", "stretch", "letterbox"],
        "How an image gets its size: a random part resized (random_resized), a random part as it is (random), the whole rescaled at random "
        "and then cropped or surrounded (scale_jitter), a random crop after padding (pad), the resized centre (center), or the whole, "
        "without regard to its proportions (stretch) or between bars (letterbox).",
    ] = "random_resized"
    jitter_scale: Annotated[
        tuple[Annotated[float, Bounds(0.01, 100)], Annotated[float, Bounds(0.01, 100)]],
        "Least and largest scale of the image, for crop=scale_jitter; at 1 the whole image just fits.",
    ] = (0.1, 2.0)
    crop_scale: Annotated[
        tuple[Annotated[float, Bounds(0, 1, open_least=True)], Annotated[float, Bounds(0, 1, open_least=True)]],
        "Least and largest fraction of the image's area that a random_resized crop takes.",
    ] = (0.08, 1.0)
    crop_ratio: Annotated[
        tuple[Annotated[float, Bounds(0.01, 100)], Annotated[float, Bounds(0.01, 100)]],
        "Least and largest width over height of a random_resized crop.",
    ] = (3 / 4, 4 / 3)
    pad: Annotated[
        Annotated[int, Bounds(0, 1024)], "Pixels, at the target size, that are added on each side before the random crop of crop=pad."
    ] = 4
    flip: Annotated[bool, "Whether an image is mirrored left to right with probability 1/2."] = True
    interpolation: Annotated[
        Literal["bilinear", "bicubic", "random"], "Interpolation of the crop and of the policy; random draws one of the two for each image."
    ] = "bicubic"
    policy: Annotated[
        str | None,
        'Augmentation policy by its timm name: "rand-m9-mstd0.5-inc1", "original", "v0", "augmix-m3" or "3a"; None has no policy.',
    ] = None
    color_jitter: Annotated[
        Annotated[float, Bounds(0, 10)], "Largest relative change of brightness, contrast and saturation, after the policy; 0 changes none."
    ] = 0.0
    erase_prob: Annotated[Share, "Probability that a rectangle of the image becomes noise; see `vitlab.device.erase`."] = 0.0
    repeats: Annotated[
        Annotated[int, Bounds(1, 1000)],
        "Number of consecutive copies of each image, each augmented on its own (repeated augmentation); "
        "the length of an epoch does not change.",
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio", "jitter_scale"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ConfigError(f"augment.{name}={getattr(self, name)} must have the smaller number first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """The optimizer, its learning rate, and parameters with settings of their own.

    Biases, norms, tokens and position embeddings do not decay. See `vitlab.train.optimizer`,
    `vitlab.train.schedule` and `vitlab.train.groups`.
    """

    path: ClassVar = ("optimizer",)

    name: Annotated[Literal["adamw", "lamb", "lion", "sgd", "adafactor", "muon", "schedule_free_adamw"], "The optimizer."] = "adamw"
    schedule: Annotated[
        Literal["cosine", "linear", "step", "constant", "rsqrt", "wsd"], "Course of the learning rate after its linear warm-up."
    ] = "cosine"
    peak_lr: Annotated[LearningRate, "Learning rate at the end of the warm-up, for the whole batch."] = 1e-3
    end_lr: Annotated[LearningRate, "Learning rate at the end of the run; the schedules step and constant do not end there."] = 0.0
    warmup: Annotated[LengthOrZero, "Duration over which the learning rate rises linearly from 0 to peak_lr."] = "5 epochs"
    cooldown: Annotated[
        LengthOrZero, "Duration at the end of the run over which the learning rate falls linearly to end_lr, for wsd and rsqrt."
    ] = "0 steps"
    decay_every: Annotated[Length, "Duration between two drops of the schedule step; timescale of the schedule rsqrt."] = "30 epochs"
    decay_factor: Annotated[
        Annotated[float, Bounds(0, 1, open_least=True)], "Factor on the learning rate at each drop of the schedule step."
    ] = 0.1
    weight_decay: Annotated[LearningRate, "Decoupled weight decay: it is multiplied by the learning rate."] = 0.05
    beta1: Annotated[Momentum, "Decay rate of the first moment; the momentum of sgd."] = 0.9
    beta2: Annotated[Momentum, "Decay rate of the second moment."] = 0.999
    momentum: Annotated[Momentum, "Momentum of muon, for matrices."] = 0.95
    eps: Annotated[
        Annotated[float, Bounds(0, 1, open_least=True)], "Number added to the root of the second moment, which divides the update."
    ] = 1e-8
    moment_dtype: Annotated[Literal["float32", "bfloat16"], "Type of the stored first moment."] = "float32"
    clip_norm: Annotated[
        Positive | None, "Largest global norm of the gradient, to which a larger one is scaled down; None does not clip."
    ] = 1.0
    layer_decay: Annotated[
        Annotated[float, Bounds(0, 1, open_least=True)],
        "Factor on the learning rate for each block between a parameter and the head; 1 treats all blocks alike.",
    ] = 1.0
    groups: Annotated[
        tuple[str, ...],
        'Groups of parameters by their names, each "REGEX [lr=FACTOR] [decay=on|off] [frozen]"; each parameter must be in exactly one. '
        "() has no groups.",
    ] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig(Group):
    """Mixing of the images of a batch with each other, on the device.

    The rules are those of timm's `Mixup`; see `vitlab.device.mix`.
    """

    path: ClassVar = ("mix",)

    mixup_alpha: Annotated[
        Annotated[float, Bounds(0, 1000)], "Parameter of the Beta distribution of mixup's mixing weight; 0 disables mixup."
    ] = 0.0
    cutmix_alpha: Annotated[
        Annotated[float, Bounds(0, 1000)], "Parameter of the Beta distribution of cutmix's area fraction; 0 disables cutmix."
    ] = 0.0
    prob: Annotated[Share, "Probability that a batch (or pair, or image: see mode) is mixed at all."] = 1.0
    switch_prob: Annotated[Share, "Probability that mixing is cutmix, where both mixup and cutmix are enabled."] = 0.5
    mode: Annotated[
        Literal["batch", "pair", "elem"],
        "Unit with a mixing weight of its own: the whole batch, each pair of images, or each image (elem).",
    ] = "batch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig(Group):
    """Distillation from a teacher, whose outputs are a second target of the loss.

    See `vitlab.losses.distilled_loss` and `vitlab.train.teacher`.
    """

    path: ClassVar = ("loss", "distillation")

    teacher: Annotated[
        str, 'Run folder of the teacher, whose averaged weights are taken where it has them; "" trains without a teacher.'
    ] = ""
    step: Annotated[
        Annotated[int, Bounds(0, 2**31 - 1)] | None, "Step of the teacher's checkpoint; None takes the newest at each start of the run."
    ] = None
    kind: Annotated[
        Literal["soft", "hard"], "Target that the teacher gives: its probabilities (soft), or its likeliest class as a label (hard)."
    ] = "soft"
    alpha: Annotated[Share, "Weight of the teacher's term of the loss; the term of the labels has 1 - alpha."] = 0.5
    temperature: Annotated[
        Annotated[float, Bounds(0, 1000, open_least=True)], "Divisor of the logits of teacher and student, for kind=soft."
    ] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Group):
    """The loss of logits against targets, which are the labels after smoothing and mixing."""

    path: ClassVar = ("loss",)

    kind: Annotated[
        str,
        Part(("softmax", "sigmoid")),
        "Loss of one image: cross-entropy (softmax), or binary cross-entropy of each class (sigmoid). A part of your own is a function "
        "(logits [b, classes], targets [b, classes]) -> [b].",
    ] = "softmax"
    label_smoothing: Annotated[
        Annotated[float, Bounds(0, 1, open_most=True)], "Fraction of a label's weight that is spread evenly over all classes."
    ] = 0.0
    class_weights: Annotated[
        Literal["none", "inverse", "inverse_sqrt"],
        "Weights of the classes in the loss, 1 on average over all training images: all alike (none), or proportional to the inverse of "
        "a class's number of images, or to the root of this inverse.",
    ] = "none"
    distillation: DistillationConfig = DistillationConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Group):
    """The layout of the devices.

    Each group of fsdp * tensor devices holds one copy of the model and processes its part of the
    batch.
    """

    path: ClassVar = ("mesh",)

    fsdp: Annotated[
        Annotated[int, Bounds(1, 2**20)],
        "Number of devices over which large parameters and their optimizer state are split; each works on images of its own.",
    ] = 1
    tensor: Annotated[
        Annotated[int, Bounds(1, 2**20)],
        "Number of devices that share the same images, each with its part of every block's heads and hidden units; not for every family.",
    ] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Group):
    """One run: everything that its result depends on."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mix: MixConfig = MixConfig()
    loss: LossConfig = LossConfig()
    mesh: MeshConfig = MeshConfig()
    batch_size: Annotated[Images, "Images per step, over all devices."] = 1024
    duration: Annotated[Length, 'Duration of the whole run, in "epochs", "steps" or "examples".'] = "90 epochs"
    accumulation: Annotated[
        Images, "Number of parts of a batch that go through the model one after the other, to save memory; it must divide batch_size."
    ] = 1
    ema_decay: Annotated[
        Annotated[float, Bounds(0, 1, open_least=True, open_most=True)] | None,
        "Decay rate per step of the weights' moving average (lower in the first steps), evaluated too; None keeps no average.",
    ] = None
    seed: Annotated[
        Annotated[int, Bounds(0, 2**63 - 1)],
        "Seed of the initial parameters, the order of the images, augmentation, mixing, dropout and drop path.",
    ] = 0
    log_every: Annotated[Length, "Duration between two lines of the log and of metrics.jsonl; at least one step."] = "50 steps"
    eval_every: Annotated[Length, "Duration between two evaluations; the last step is always evaluated."] = "1 epochs"
    eval_batch_size: Annotated[Images | None, "Images per step of an evaluation, over all devices; None takes batch_size."] = None
    metrics: Annotated[
        tuple[Annotated[str, Part()], ...],
        "Metrics of your own, beside top-1, top-5 and the loss: functions (logits [b, classes], labels [b]) -> [b], "
        "whose mean over all images of an evaluation is recorded under the function's name.",
    ] = ()
    checkpoint_every: Annotated[Length, "Duration between two checkpoints; the last step is always saved."] = "1 epochs"
    keep_checkpoints: Annotated[Annotated[int, Bounds(1, 10**6)], "Number of newest checkpoints that are kept."] = 2
    keep_best: Annotated[
        Annotated[int, Bounds(0, 10**6)],
        "Number of checkpoints of the best evaluations (by the task's first metric; top-1 in classification) kept beside the newest; "
        "an evaluation that is the best so far is always saved.",
    ] = 1
    stop_after: Annotated[
        Length | None, 'Duration without a new best evaluation after which the run ends, such as "10 epochs"; None never ends it early.'
    ] = None
    keep_every: Annotated[
        Length | None, 'Interval of checkpoints that are never deleted, such as "10 epochs": the first of each; None deletes old ones.'
    ] = None
    nonfinite: Annotated[
        Literal["stop", "skip"], "Reaction to a loss or gradient that is not finite: the run ends (stop), or drops the update (skip)."
    ] = "stop"
    spike_factor: Annotated[
        Annotated[float, Bounds(1, 1e6, open_least=True)] | None,
        'Multiple of the usual norm of the gradient above which an update is dropped, under nonfinite="skip"; None has no limit.',
    ] = None
    max_skips: Annotated[Annotated[int, Bounds(1, 2**31 - 1)], "Consecutive updates that may be dropped before the run ends."] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spike_factor is not None and self.nonfinite != "skip":
            raise ConfigError(f'spike_factor={self.spike_factor} needs nonfinite="skip"')
        if self.batch_size % self.accumulation:
            raise ConfigError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if self.ema_decay is not None and self.optimizer.name == "schedule_free_adamw":
            raise ConfigError('optimizer.name="schedule_free_adamw" averages the weights itself: set ema_decay=None')

    @property
    def averages(self) -> bool:
        """Whether the run keeps averaged weights beside its own."""
        return self.ema_decay is not None or self.optimizer.name == "schedule_free_adamw"

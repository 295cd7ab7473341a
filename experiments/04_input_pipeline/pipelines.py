"""Pipelines that run.py compares, each in a process of its own.

So the packages of other pipelines need not be installed beside ours. A pipeline takes the folder of
photographs (or a prepared data set) and returns a function that makes a number of images, on one
thread unless its name says otherwise. It is imported and warmed up before the clock starts.

run.py calls: python pipelines.py NAME FOLDER. It answers each line COUNT of its input with a line
of JSON.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

SIZE = 224  # pixels per side
BATCH = 64
SMALL_BATCH = 256
SEED = 0
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
Make = Callable[[int], None]
OPEN = contextlib.ExitStack()  # the loaders, closed when the process ends


def encoded(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(pathlib.Path(folder).rglob("*.jpg"))]


def ours(folder: str, policy: str | None = None) -> Make:
    """Whole batches of `vitlab.data`: order, random numbers, decoding, crop, flip.

    Images are uint8, to be normalised on the device.
    """
    from vitlab.config import AugmentConfig
    from vitlab.data.batches import Layout, Threads, TrainBatch
    from vitlab.input_benchmark import Decoded

    layout = Layout(size=(SIZE, SIZE), channels=3, batch_size=BATCH, process_index=0, process_count=1)
    examples = [{"image": data, "label": 0} for data in encoded(folder)]
    source = Decoded(examples=examples, class_names=("a", "b"), channels=3, fields=layout.fields)
    batch = TrainBatch(source, AugmentConfig(policy=policy), layout, SEED, Threads(1))
    return stepwise(batch)


def decoding(folder: str) -> Make:
    """Decoding by OpenCV's libjpeg-turbo alone, which bounds the gain from anything around it."""
    from vitlab.data.decode import decode

    return one_by_one(encoded(folder), lambda data: decode(data, 3))


def stepwise(batch: Callable[[int], Any], size: int = BATCH) -> Make:
    steps = iter(range(2**62))

    def make(count: int) -> None:
        for _ in range(count // size):
            batch(next(steps))

    return make


def pillow(folder: str, policy: str | None = None, *, floats: bool = False) -> Make:
    """timm's `create_transform` with its defaults.

    Images are uint8, for timm's prefetcher, or normalised float32 tensors without it.
    """
    import io

    without_missing_operators()
    import torch
    from PIL import Image
    from timm.data import create_transform

    torch.set_num_threads(1)
    transform = create_transform(SIZE, is_training=True, color_jitter=None, auto_augment=policy, use_prefetcher=not floats)
    return one_by_one(encoded(folder), lambda data: transform(Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB")))


def torchvision(folder: str, *, floats: bool = False) -> Make:
    """torchvision's `decode_jpeg`, then its transforms on tensors: uint8, or normalised float32."""
    without_missing_operators()
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    if floats:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    transform = v2.Compose(steps)
    images = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded(folder)]
    return one_by_one(images, lambda data: transform(decode_jpeg(data, mode=ImageReadMode.RGB)))


def tensorflow(folder: str, *, floats: bool = False) -> Make:
    """`decode_and_crop_jpeg` of tf.data, as in codes for TPUs: bilinear, not antialiased."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def crop(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, tf.zeros((0, 0, 4)), 0, area_range=(0.08, 1.0), aspect_ratio_range=(3 / 4, 4 / 3), use_image_if_no_bounding_boxes=True
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), (SIZE, SIZE))
        image = tf.image.random_flip_left_right(image)
        return (image - 120.0) / 57.0 if floats else tf.cast(image, tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(encoded(folder)).repeat().map(crop).batch(BATCH)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    batches = iter(data.with_options(options))
    return stepwise(lambda _: next(batches).numpy())


def one_by_one(images: list[Any], transform: Callable[[Any], Any]) -> Make:
    numbers = iter(range(2**62))

    def make(count: int) -> None:
        for _ in range(count):
            transform(images[next(numbers) % len(images)])

    return make


def plain(folder: str, threads: int = 1) -> Make:
    """A loop that opens, decodes, crops and flips one file after the other, and no more.

    The loader is measured against it.
    """
    import numpy as np

    from vitlab.data.augment import crop, flip_rows, random_resized_box, resize
    from vitlab.data.decode import decode

    paths = [str(path) for path in sorted(pathlib.Path(folder).rglob("*.jpg"))]
    rngs = [np.random.default_rng((SEED, thread)) for thread in range(threads)]
    pool = OPEN.enter_context(concurrent.futures.ThreadPoolExecutor(threads))

    def fill(images: np.ndarray, step: int, thread: int) -> None:
        rng = rngs[thread]
        for row in range(thread, BATCH, threads):
            with open(paths[(step * BATCH + row) % len(paths)], "rb") as file:
                image = decode(file.read(), 3)
            box = random_resized_box((image.shape[0], image.shape[1]), rng, (0.08, 1.0), (3 / 4, 4 / 3))
            image = resize(crop(image, box), (SIZE, SIZE), "bicubic")
            images[row] = flip_rows(image) if rng.random() < 0.5 else image

    def batch(step: int) -> None:
        images = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
        if threads == 1:
            fill(images, step, 0)
        else:
            list(pool.map(fill, [images] * threads, [step] * threads, range(threads)))

    return stepwise(batch)


def loader(folder: str, *, threads: int, workers: int = 0) -> Make:
    from vitlab.config import AugmentConfig, DataConfig

    data = DataConfig(source="image_folder", data_dir=folder, num_threads=threads, num_workers=workers)
    return through_the_loader(data, AugmentConfig(), SIZE, BATCH)


def through_the_loader(data: Any, augment: Any, size: int, batch_size: int) -> Make:
    from vitlab.data import open_source, train_batches

    source = open_source(data, train=True)
    options = {"image_size": size, "channels": source.channels, "batch_size": batch_size, "seed": SEED}
    batches = OPEN.enter_context(train_batches(source, augment=augment, data=data, **options))

    def make(count: int) -> None:
        for _ in range(count // batch_size):
            next(batches)

    return make


def first(folder: str) -> Make:
    """Opens the folder and makes a loader each time, so that the first batch is measured."""
    from vitlab.config import AugmentConfig, DataConfig
    from vitlab.data import open_source, train_batches

    data = DataConfig(source="image_folder", data_dir=folder, num_threads=2)

    def make(count: int) -> None:
        source = open_source(data, train=True)
        with train_batches(source, augment=AugmentConfig(), data=data, image_size=SIZE, channels=3, batch_size=count, seed=SEED) as batches:
            next(batches)

    return make


def bundled(folder: str) -> Make:
    """The 28 x 28 images that ship with vitlab, augmented as in `configs/quickstart.py`."""
    from vitlab.config import AugmentConfig, DataConfig

    return through_the_loader(DataConfig(source="bundled", num_threads=1), AugmentConfig(crop="pad"), 28, SMALL_BATCH)


def cifar10(folder: str) -> Make:
    """CIFAR-10 as JPEG in array_record files of TFDS, augmented as in `configs/vit_cifar10.py`."""
    from vitlab.config import AugmentConfig, DataConfig

    data = DataConfig(source="tfds", name="cifar10_jpeg", data_dir=folder, num_threads=1)
    return through_the_loader(data, AugmentConfig(crop="pad", pad=4), 32, SMALL_BATCH)


def without_missing_operators() -> None:
    """Ignores operators that torchvision cannot register.

    A torchvision that was built for another torch lacks some operators; only detection needs them.
    """
    import torch

    register = torch.library.register_fake

    def forgiving(op, *arguments, **options):
        def decorate(fn):
            try:
                return register(op, *arguments, **options)(fn)
            except RuntimeError:
                return fn

        return decorate

    torch.library.register_fake = forgiving


PIPELINES: dict[str, Callable[[str], Make]] = {
    "vitlab": ours,
    "vitlab, decoding alone": decoding,
    "timm, uint8": pillow,
    "timm, float32": lambda folder: pillow(folder, floats=True),
    "torchvision, uint8": torchvision,
    "torchvision, float32": lambda folder: torchvision(folder, floats=True),
    "tf.data, uint8": tensorflow,
    "tf.data, float32": lambda folder: tensorflow(folder, floats=True),
    "vitlab, RandAugment": lambda folder: ours(folder, RAND_AUGMENT),
    "timm, RandAugment, uint8": lambda folder: pillow(folder, RAND_AUGMENT),
    "plain loop": plain,
    "plain loop, 2 threads": lambda folder: plain(folder, 2),
    "loader, 2 threads": lambda folder: loader(folder, threads=2),
    "loader, 2 workers": lambda folder: loader(folder, threads=1, workers=2),
    "first batch": first,
    "bundled": bundled,
    "CIFAR-10": cifar10,
}


# Number of images that may be ready before the clock starts; they are taken first.
READY = {"loader, 2 threads": 8 * BATCH, "loader, 2 workers": 16 * BATCH, "bundled": 8 * SMALL_BATCH, "CIFAR-10": 8 * SMALL_BATCH}


def cpu_seconds(pid: int | None = None) -> float:
    """Returns the CPU time of a process and of its living children.

    Args:
      pid: The process; None: this one.
    """
    children: list[int] = []
    for task in pathlib.Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            children += map(int, (task / "children").read_text().split())
    if pid is None:
        own = time.process_time()
    else:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(cpu_seconds, children))


def versions() -> str:
    packages = {"cv2": "OpenCV", "PIL": "Pillow", "tensorflow": "TensorFlow", **{name: name for name in ("timm", "torch", "torchvision")}}
    loaded = {label: getattr(sys.modules.get(name), "__version__", None) for name, label in packages.items()}
    return ", ".join(f"{label} {version}" for label, version in loaded.items() if version)


def main(name: str, folder: str) -> None:
    try:
        make = PIPELINES[name](folder)
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        print(json.dumps({"reason": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)
        return
    print(json.dumps({"versions": versions()}), flush=True)
    for line in sys.stdin:
        if name in READY:
            make(READY[name])
        wall, cpu = time.perf_counter(), cpu_seconds()
        make(int(line))
        print(json.dumps({"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}), flush=True)


if __name__ == "__main__":
    with OPEN:
        main(sys.argv[1], sys.argv[2])

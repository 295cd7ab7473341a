"""Decides whether images are grey or RGB, and which of the two a model gets."""

import concurrent.futures
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitlab.config import ConfigError, ModelConfig
from vitlab.data.decode import header_of
from vitlab.data.headers import DecodeError
from vitlab.data.order import stream

_PUBLISHED = re.compile(r"^\w+://|\.(safetensors|npz|pth|pt|bin|ckpt|tar)(#.*)?$", re.IGNORECASE)  # published weights
PROBES = 2**16  # largest number of images whose headers are read
_AT_ONCE, _THREADS = 64, 8
_HEADS = (2**12, 2**16, None)  # bytes read of a file, in turn, until they hold its header


def model_channels(model: ModelConfig, images: int) -> int:
    """Number of channels of the images that a model gets; nothing else decides it.

    Args:
      model: The model's config. Its `in_channels` decides if it is set. Otherwise, weights of a
        file, an address or a short name make it 3, because published weights expect RGB (grey
        images are repeated into RGB); weights of a run folder make it the number of that run.
      images: Channels of the data, 1 if all images are grey, else 3; decides in all other cases,
        and always if it is another number.

    Raises:
      ConfigError: The model is to have another number than 1 or 3, and not that of the data.
    """
    if images not in (1, 3):
        if model.in_channels not in (None, images):
            raise ConfigError(f"model.in_channels={model.in_channels} must be {images}, as the data has it, or None")
        return images
    if model.in_channels not in (None, 1, 3):
        rule = f"must be 1 or 3, unless data.files declares image=... channels={model.in_channels}"
        raise ConfigError(f"model.in_channels={model.in_channels} {rule}")
    if model.in_channels is not None:
        return model.in_channels
    weights = model.weights or ""
    by_short_name = weights.isidentifier() and not os.path.isdir(weights)
    return 3 if by_short_name or _PUBLISHED.search(weights) else images


def channels_of(read: Callable[[int, int | None], bytes], labels: Sequence[int] | np.ndarray, *, probes: int = PROBES) -> int:
    """Number of channels by the images' headers: 1 if all are grey, 3 if any has colour.

    Images are probed in a pseudo-random order, one of each class first, until one has colour or
    `probes` have been read. Images that cannot be read or have no header are skipped.

    Args:
      read: Function of (index of an image, number of bytes that suffice, or None for all) that
        returns the file's first bytes or more; it may raise OSError. Called on several threads.
      labels: Labels of all images.
      probes: Largest number of images to probe.
    """
    order, found = _probing_order(np.asarray(labels), probes), set()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        while True not in found and (chunk := list(itertools.islice(order, _AT_ONCE))):
            found |= set(pool.map(lambda index: _in_colour(read, index), chunk))
    return 1 if False in found and True not in found else 3


def _probing_order(labels: np.ndarray, probes: int) -> Iterator[int]:
    shuffled = stream("epoch", 0, 0).permutation(len(labels))
    _, first = np.unique(labels[shuffled], return_index=True)
    rest = np.delete(shuffled, first)
    return iter(np.concatenate((shuffled[first], rest))[: max(probes, len(first))].tolist())


def _in_colour(read: Callable[[int, int | None], bytes], index: int) -> bool | None:
    for size in _HEADS:
        try:
            return header_of(read(index, size)).colour
        except DecodeError:
            continue
        except OSError:
            break
    return None

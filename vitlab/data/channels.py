"""Whether images are grey or in colour, and which of the two a model gets."""

import concurrent.futures
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitlab.config import ModelConfig
from vitlab.data.decode import header_of
from vitlab.data.headers import DecodeError
from vitlab.data.order import stream

_PUBLISHED = re.compile(r"^\w+://|\.(safetensors|npz|pth|pt|bin|ckpt|tar)(#.*)?$", re.IGNORECASE)  # by name: no run folder
PROBES = 2**16  # images at most whose headers are read
_AT_ONCE, _THREADS = 64, 8
_HEADS = (2**12, 2**16, None)  # bytes that are read of a file, one after the other until they hold its header


def model_channels(model: ModelConfig, images: int) -> int:
    """Channels of the images that a model is given: the only place where they are decided.

    Args:
      model: Its `in_channels` decides, if given. Otherwise weights of a file, an address or a short name that training begins with
        are RGB, as published ones are, and grey images are repeated into RGB; those of a run folder are what its images were.
      images: 1 if all images of the data are grey, else 3; what decides in all other cases.
    """
    if model.in_channels is not None:
        return model.in_channels
    weights = model.weights or ""
    by_short_name = weights.isidentifier() and not os.path.isdir(weights)
    return 3 if by_short_name or _PUBLISHED.search(weights) else images


def channels_of(read: Callable[[int, int | None], bytes], labels: Sequence[int] | np.ndarray, *, probes: int = PROBES) -> int:
    """1 if the headers of all images say grey, else 3: one image in colour decides.

    The images are probed in a pseudo-random order, of each class one first, until one is in colour; of more than `probes` images so
    many are. Those that cannot be read, or have no header, say nothing.

    Args:
      read: Index of an image, and how many bytes of it are enough (None: all are wanted) -> its bytes, or the first of them; may
        raise OSError. Called on several threads.
      labels: Of all images.
      probes: Images at most.
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

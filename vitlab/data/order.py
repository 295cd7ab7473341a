"""Random choices of the input, as functions of the seed and a position.

A position is a number in the endless sequence of training images, step * batch_size + row. No state
is kept between batches, so resuming is counting from another step, and any number of threads,
processes and hosts draws the same images.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

_STREAMS = ("image", "batch", "epoch", "round")  # independent random streams
_ROUND = 256  # smallest number of positions in which a mixture has exactly its weights
_local = threading.local()


def stream(name: str, seed: int, number: int, part: int = 0) -> np.random.Generator:
    """The generator of image (by position), batch (by step), epoch or round `number`.

    `part` is the index of a source in a mixture, which has its own epochs. The result is valid
    until this thread's next call: one Philox generator per thread is set to the key (seed, number),
    in a tenth of the time of a new one.
    """
    if not hasattr(_local, "generator"):
        _local.generator = np.random.Generator(np.random.Philox(0))
    bits = _local.generator.bit_generator
    state: dict[str, Any] = dict(bits.state)
    state["state"]["key"][:] = (seed, number)
    state["state"]["counter"][:] = (0, 0, part, _STREAMS.index(name))
    state["buffer_pos"], state["has_uint32"] = 4, 0
    bits.state = state
    return _local.generator


class ShuffledOrder:
    """Maps positions to image indices; each epoch is another permutation.

    With `repeats` each image comes that often in a row, and an epoch of the same length has only
    the first images of the permutation (repeated augmentation, Hoffer et al., arXiv:1901.09335; as
    in DeiT).
    """

    def __init__(self, num_examples: int, seed: int, *, repeats: int = 1, part: int = 0):
        """Orders `num_examples` images by `seed`, and by `part`, a source's index in a mixture."""
        self.num_examples, self.seed, self.repeats, self.part = num_examples, seed, repeats, part
        self._epochs: dict[int, np.ndarray] = {}  # permutations of the last two epochs, since a batch may span two

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices int64 [k] of the images at positions int64 [k]; fast if these span few epochs."""
        epochs, offsets = np.divmod(positions, self.num_examples)
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = self._permutation(int(epoch))[offsets[epochs == epoch] // self.repeats]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        order = self._epochs.get(epoch)
        if order is None:
            order = stream("epoch", self.seed, epoch, self.part).permutation(self.num_examples)
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: order}
        return order

    def __getstate__(self):
        return self.__dict__ | {"_epochs": {}}


class MixedOrder:
    """Maps positions to indices in a mixture: chooses the source by weight, then its image.

    The sequence is divided into rounds of at least 256 positions and a multiple of the sum of the
    weights, in which each source has exactly its share. A source's images are spread evenly over a
    round: each lies at random in an interval of its own, so that every batch has the proportions of
    the weights but for a few images. Each source goes through its own epochs as in `ShuffledOrder`:
    all its images occur once before one occurs again.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[int], seed: int, *, repeats: int = 1):
        """Takes the sources' lengths in images and weights of at least 1.

        `repeats` as in `ShuffledOrder`.
        """
        self.seed, self.repeats = seed, repeats
        self.offsets = np.cumsum([0, *lengths[:-1]])
        self.orders = [ShuffledOrder(length, seed, repeats=repeats, part=part) for part, length in enumerate(lengths)]
        shares = np.array(weights, np.int64) // math.gcd(*weights)
        self.shares = shares * -(-_ROUND // int(shares.sum()))  # images of each source in a round
        self._rounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # rounds of the last call

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices int64 [k] of the images at positions int64 [k]."""
        slots, copies = np.divmod(positions, self.repeats)  # copies of an image are consecutive
        rounds, places = np.divmod(slots, self.shares.sum())
        known = self._rounds
        current = {number: known[number] if number in known else self._round(number) for number in np.unique(rounds).tolist()}
        self._rounds = current
        parts, counts = np.empty_like(positions), np.empty_like(positions)
        for number, (part, count) in current.items():
            here = rounds == number
            parts[here], counts[here] = part[places[here]], count[places[here]]
        indices = np.empty_like(positions)
        for part in np.unique(parts).tolist():
            order, here = self.orders[part], parts == part
            indices[here] = self.offsets[part] + order((rounds[here] * self.shares[part] + counts[here]) * self.repeats + copies[here])
        return indices

    def _round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a round, its source and the number of that source's images before it.

        Both are int64 [round].
        """
        parts = np.repeat(np.arange(len(self.shares)), self.shares)
        counts = np.concatenate([np.arange(share) for share in self.shares])
        times = (counts + stream("round", self.seed, number).random(len(parts))) / self.shares[parts]
        order = np.argsort(times, kind="stable")
        return parts[order], counts[order]

    def __getstate__(self):
        return self.__dict__ | {"_rounds": {}}


class BalancedOrder:
    """Maps positions to image indices, with each class equally often: a mixture of the classes.

    In each round of `MixedOrder` all classes have the same number of images. A class goes through
    all its images before one occurs again. The length of an epoch does not change. Classes without
    images are left out.
    """

    def __init__(self, labels: np.ndarray, seed: int, *, repeats: int = 1):
        """Takes integer labels [n] of all images; each image comes `repeats` times in a row."""
        self._repeats = repeats
        self._by_class = np.argsort(labels, kind="stable")
        _, counts = np.unique(labels, return_counts=True)
        self._mixed = MixedOrder(counts.tolist(), [1] * len(counts), seed)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices int64 [k] of the images at positions int64 [k]."""
        return self._by_class[self._mixed(positions // self._repeats)]

"""What is random in the input, as functions of the seed and a position in the endless sequence of training images.

Position p = step * batch_size + row. Nothing is kept between batches, so resuming is only counting from another step, and any
number of threads, processes and hosts draws the same images.
"""

import threading
from typing import Any

import numpy as np

_STREAMS = ("image", "batch", "epoch")  # independent random streams
_local = threading.local()


def stream(name: str, seed: int, number: int) -> np.random.Generator:
    """The generator of image (by position), batch (by step) or epoch `number`; valid until this thread's next call.

    One Philox generator per thread is set to the key (seed, number): a tenth of the time of making one.
    """
    if not hasattr(_local, "generator"):
        _local.generator = np.random.Generator(np.random.Philox(0))
    bits = _local.generator.bit_generator
    state: dict[str, Any] = dict(bits.state)
    state["state"]["key"][:] = (seed, number)
    state["state"]["counter"][:] = (0, 0, 0, _STREAMS.index(name))
    state["buffer_pos"], state["has_uint32"] = 4, 0
    bits.state = state
    return _local.generator


class ShuffledOrder:
    """Position -> index of the image; every epoch is another permutation.

    With `repeats` an epoch is as long, but of the first images of the permutation, each so often in a row (repeated
    augmentation, Hoffer et al., arXiv:1901.09335; as in DeiT).
    """

    def __init__(self, num_examples: int, seed: int, *, repeats: int = 1):
        """`num_examples` images; the order is a function of `seed`."""
        self.num_examples, self.seed, self.repeats = num_examples, seed, repeats
        self._epochs: dict[int, np.ndarray] = {}  # the last two asked for: a batch may span them

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices int64 [k] of the images at consecutive positions int64 [k]."""
        epochs, offsets = np.divmod(positions, self.num_examples)
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = self._permutation(int(epoch))[offsets[epochs == epoch] // self.repeats]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        order = self._epochs.get(epoch)
        if order is None:
            order = stream("epoch", self.seed, epoch).permutation(self.num_examples)
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: order}
        return order

    def __getstate__(self):
        return self.__dict__ | {"_epochs": {}}

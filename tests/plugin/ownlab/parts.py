"""A mixer, a source, a loss and a metric."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Shift(nnx.Module):
    """Moves half of the channels some tokens to the right, then applies a linear layer."""

    def __init__(self, dim, *, num_heads, tokens=1, dtype=jnp.float32, rngs):
        del num_heads
        self.tokens = tokens
        self.proj = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        still, moved = jnp.split(x, 2, axis=-1)
        return self.proj(jnp.concatenate((still, jnp.roll(moved, self.tokens, axis=2)), -1))


@dataclasses.dataclass(frozen=True)
class Stripes:
    """Grey images of 28 x 28 pixels with stripes, across or along."""

    count: int
    class_names = ("across", "along")
    channels = 1

    @property
    def fingerprint(self):
        return f"stripes-{self.count}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.zeros((28, 28, 1), np.uint8)
        if index % 2:
            image[:, index % 5 :: 5] = 255
        else:
            image[index % 5 :: 5] = 255
        return {"image": image, "label": index % 2}

    def name_of(self, index):
        return f"stripes/{index}"


def open_stripes(split, *, data_dir, name):
    return Stripes({"train": 64, "test": 20}[split])


def focal(logits, targets):
    """Cross-entropy with less weight where the network is sure (arXiv:1708.02002, gamma 2)."""
    log_p = jax.nn.log_softmax(logits)
    return -(targets * (1 - jnp.exp(log_p)) ** 2 * log_p).sum(-1)


def likelihood(logits, labels):
    """Returns the probability of the right class."""
    return jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]


class Gate(nnx.Module):
    """A plug-in: one learned factor for the whole map."""

    def __init__(self, dim, *, start=1.0, dtype=jnp.float32, rngs):
        self.start = nnx.Param(jnp.full(1, start))

    def __call__(self, x):
        return x * self.start[...].astype(x.dtype).reshape(1, 1, 1, 1)

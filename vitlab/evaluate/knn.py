"""Weighted k nearest neighbours on frozen features (DINO, arXiv:2104.14294, appendix F)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitlab.evaluate.features import Features

NUM_NEIGHBOURS = (10, 20, 100, 200)
_QUOTED = 20  # number of neighbours of DINO's published results
_TEMPERATURE = 0.07
_BLOCK = 8192  # number of training images compared at once
_QUERIES = 512  # number of images classified at once


def knn(train: Features, test: Features, *, num_classes: int) -> dict[str, float | int | dict[str, float]]:
    """Top-1 and top-5 for 20 neighbours, and top-1 by the number of neighbours.

    With fewer than 20 training images all of them are the neighbours.

    Returns:
      {"top1", "top5" (only with more than five classes), "k", "images", "top1_by_k": {"10": ...}}.
    """
    ks = sorted({min(k, len(train.labels)) for k in NUM_NEIGHBOURS})
    quoted = min(_QUOTED, len(train.labels))
    hits = {k: np.zeros(2) for k in ks}
    for start in range(0, len(test.labels), _QUERIES):
        rows = slice(start, start + _QUERIES)
        similarity, neighbours = nearest(np.asarray(train.values), np.asarray(test.values[rows]), max(ks))
        for k in ks:
            votes = vote(similarity[:, :k], train.labels[neighbours[:, :k]], num_classes)
            rank = (np.argsort(-votes, axis=-1, kind="stable") == test.labels[rows, None]).argmax(-1)
            hits[k] += [(rank < 1).sum(), (rank < 5).sum()]
    shares = {k: hits[k] / max(len(test.labels), 1) for k in ks}
    top5 = {"top5": float(shares[quoted][1])} if num_classes > 5 else {}
    by_k = {str(k): float(share[0]) for k, share in shares.items()}
    return {"top1": float(shares[quoted][0]), **top5, "k": quoted, "images": len(test.labels), "top1_by_k": by_k}


def nearest(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], k: int
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Cosine similarity and index of the k most similar training images, the most similar first.

    Of equally similar images the one with the lower index comes first. Training images are compared
    in blocks, which bounds the memory.
    """
    queries = jnp.asarray(_normalised(test))
    best, where = jnp.full((len(test), k), -jnp.inf), jnp.zeros((len(test), k), jnp.int32)
    for start in range(0, len(train), _BLOCK):
        block = _normalised(np.asarray(train[start : start + _BLOCK]))
        filled = np.pad(block, ((0, min(_BLOCK, len(train)) - len(block)), (0, 0)))  # one shape, so that one program is compiled
        best, where = _merge(queries, jnp.asarray(filled), best, where, start, len(block))
    return np.asarray(best), np.asarray(where)


def vote(similarity: Float[np.ndarray, "m k"], labels: Int[np.ndarray, "m k"], num_classes: int) -> Float[np.ndarray, "m classes"]:
    """Votes of the neighbours for their classes; a vote weighs exp(similarity / 0.07)."""
    votes = np.zeros((len(labels), num_classes), np.float32)
    weights = np.exp(similarity / _TEMPERATURE)
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes


def shares(
    similarity: Float[np.ndarray, "m k"], labels: Int[np.ndarray, "m k"], num_classes: int, k: int
) -> Float[np.ndarray, "m classes"]:
    """DINOv2's form of `vote` for the first k of all neighbours that are given.

    Its weights are a softmax over all of them: of fewer than all, the shares add up to less than
    one. The order of the classes is that of `vote`.
    """
    total = np.exp(similarity / _TEMPERATURE).sum(-1, keepdims=True)
    return vote(similarity[:, :k], labels[:, :k], num_classes) / total.astype(np.float32)


@jax.jit
def _merge(
    queries: Float[Array, "m d"],
    block: Float[Array, "n d"],
    best: Float[Array, "m k"],
    where: Int[Array, "m k"],
    start: int | Int[Array, ""],
    count: int | Int[Array, ""],
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Updates the k most similar images with a block of training images.

    The first `count` rows of the block are the images from index `start` on.
    """
    similarity = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    inside = jnp.arange(block.shape[0])[None] < count
    similarity = jnp.where(inside, similarity, -jnp.inf)
    index = jnp.broadcast_to(start + jnp.arange(block.shape[0])[None], similarity.shape).astype(jnp.int32)
    top, chosen = jax.lax.top_k(jnp.concatenate([best, similarity], axis=1), best.shape[1])
    return top, jnp.take_along_axis(jnp.concatenate([where, index], axis=1), chosen, axis=1)


def _normalised(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)).astype(np.float32)

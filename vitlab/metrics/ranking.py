"""Scores of rankings: average precision of multi-label classification, recall of retrieval."""

import numpy as np
from jaxtyping import Bool, Float, Int


def average_precisions(scores: Float[np.ndarray, "n classes"], labels: Bool[np.ndarray, "n classes"]) -> Float[np.ndarray, " classes"]:
    """Returns the average precision of each class over a set; NaN for classes without positives.

    The value is the sum over thresholds of the precision times the growth of the recall, without
    interpolation, as scikit-learn defines it. Images of equal score share a threshold, so their
    order does not matter.

    Args:
      scores: Score of each class for each image; higher is likelier.
      labels: True where an image has the class.
    """
    out = np.full(scores.shape[1], np.nan)
    for i in np.flatnonzero(labels.any(0)):
        order = np.argsort(-scores[:, i], kind="stable")
        ordered, positive = scores[order, i], labels[order, i]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # last image of each threshold
        hits = np.cumsum(positive)[ends]
        out[i] = (hits / (ends + 1) * np.diff(hits, prepend=0)).sum() / positive.sum()
    return out


def mean_average_precision(scores: Float[np.ndarray, "n classes"], labels: Bool[np.ndarray, "n classes"]) -> dict[str, float]:
    """Returns "map", the mean of `average_precisions` over classes with a positive image.

    The result is empty if there is no such class.
    """
    values = average_precisions(scores, labels)
    known = values[~np.isnan(values)]
    return {"map": float(known.mean())} if len(known) else {}


def recalls(
    query: Float[np.ndarray, "queries d"],
    gallery: Float[np.ndarray, "items d"],
    *,
    matches: Bool[np.ndarray, "queries items"],
    at: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """Returns the share of queries with a match among their nearest items, by cosine similarity.

    Args:
      query: Embeddings of the queries.
      gallery: Embeddings of the items.
      matches: True where an item is right for a query.
      at: Numbers k of nearest items.

    Returns:
      "recall_at_k" for each k up to the number of items, over the queries that have a match; empty
      without such a query. Items of equal similarity keep their order.
    """
    asked = matches.any(1)
    if not asked.any():
        return {}
    query, gallery = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (query[asked], gallery))
    order = np.argsort(-(query @ gallery.T), axis=1, kind="stable")
    hits = np.take_along_axis(matches[asked], order, axis=1)
    return {f"recall_at_{k}": float(hits[:, :k].any(1).mean()) for k in at if k <= len(gallery)}


def ranks(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns the number of classes ranked before the label.

    These have a higher logit, or an equal one and a lower class number.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return before.sum(1)

"""Distance between confidence and accuracy."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

NUM_BINS = 15


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Images by the probability of their predicted class, in bins (i / bins, (i + 1) / bins]."""

    images: Int[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]  # share of right predictions; 0 in an empty bin
    confidence: Float[np.ndarray, " bins"]  # mean probability of the predicted class; 0 in an empty bin

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| of each image's bin."""
        return float((self._shares * self._gaps).sum())

    @property
    def rms(self) -> float:
        """Root mean squared calibration error: as `ece`, with the root mean square of the gaps."""
        return float(np.sqrt((self._shares * self._gaps**2).sum()))

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of a bin."""
        return float(self._gaps.max())

    @property
    def _gaps(self) -> Float[np.ndarray, " bins"]:
        return np.abs(self.accuracy - self.confidence)

    @property
    def _shares(self) -> Float[np.ndarray, " bins"]:
        return self.images / max(self.images.sum(), 1)


def calibration(confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, bins: int = NUM_BINS) -> Calibration:
    """Sorts predictions into bins of equal width (Guo et al., arXiv:1706.04599, section 2).

    Args:
      confidence: Probability of the predicted class, in [0, 1].
      correct: Whether the predicted class is the label.
      bins: Number of bins.
    """
    index = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    images, right, sure = (np.bincount(index, weights, bins) for weights in (None, correct, confidence))
    return Calibration(images=images.astype(np.int64), accuracy=right / np.maximum(images, 1), confidence=sure / np.maximum(images, 1))

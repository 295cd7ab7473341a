"""Errors of monocular depth over valid pixels (Eigen et al., arXiv:1406.2283, section 4.2)."""

import numpy as np
from jaxtyping import Bool, Float


def depth_record(
    prediction: Float[np.ndarray, "*pixels"], target: Float[np.ndarray, "*pixels"], valid: Bool[np.ndarray, "*pixels"]
) -> dict[str, float]:
    """Returns the scores of one image; a set's score is their mean over images that have scores.

    Args:
      prediction: Predicted depth, above zero, in the unit of the target.
      target: True depth.
      valid: True where the truth is known and above zero.

    Returns:
      "abs_rel" (mean |error| / depth), "sq_rel", "rmse", "rmse_log" (natural logarithm), "silog"
      (the scale-invariant error times 100, as KITTI reports it) and "delta1" to "delta3" (the share
      of pixels whose ratio is below 1.25, 1.25^2, 1.25^3). Empty without a valid pixel.

    Raises:
      ValueError: A valid depth, predicted or true, is not above zero.
    """
    x, y = prediction[valid].astype(np.float64), target[valid].astype(np.float64)
    if not len(y):
        return {}
    if not (x.min() > 0 and y.min() > 0):
        raise ValueError(f"depths must be above zero; the least are {x.min()} (predicted) and {y.min()} (true)")
    off, log, ratio = x - y, np.log(x) - np.log(y), np.maximum(x / y, y / x)
    out = {
        "abs_rel": np.mean(np.abs(off) / y),
        "sq_rel": np.mean(np.square(off) / y),
        "rmse": np.sqrt(np.mean(np.square(off))),
        "rmse_log": np.sqrt(np.mean(np.square(log))),
        "silog": 100 * np.sqrt(max(np.mean(np.square(log)) - np.mean(log) ** 2, 0.0)),
    }
    out |= {f"delta{i}": np.mean(ratio < 1.25**i) for i in (1, 2, 3)}
    return {name: float(value) for name, value in out.items()}

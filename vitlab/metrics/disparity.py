"""Errors of stereo disparity and optical flow, pooled over all valid pixels of a set."""

import numpy as np
from jaxtyping import Bool, Float

BAD = (1, 2, 3, 4)  # thresholds of bad disparities, in pixels
FLOW = (1, 3, 5)  # thresholds of good flow vectors, in pixels


def disparity_sums(
    prediction: Float[np.ndarray, "*pixels"], target: Float[np.ndarray, "*pixels"], valid: Bool[np.ndarray, "*pixels"]
) -> dict[str, float]:
    """Returns sums over an image's valid pixels, to be added up in the order of images.

    Args:
      prediction: Predicted disparity in pixels.
      target: True disparity in pixels.
      valid: True where the truth is known; SceneFlow also leaves out disparities of 192 and above.
    """
    off = np.abs(prediction[valid].astype(np.float64) - target[valid].astype(np.float64))
    magnitude = np.abs(target[valid].astype(np.float64))
    sums = {"pixels": len(off), "error": off.sum(), "square": np.square(off).sum()}
    sums |= {f"bad{x}": np.count_nonzero(off > x) for x in BAD}
    sums["outliers"] = np.count_nonzero((off > 3) & (off > 0.05 * magnitude))
    return {name: float(value) for name, value in sums.items()}


def disparity_scores(sums: dict[str, float]) -> dict[str, float]:
    """Returns scores from the sums of a set.

    Returns:
      "epe", the mean |error| in pixels over all valid pixels (as in KITTI and SceneFlow; Middlebury
      averages over images); "rms" in pixels; "bad1" to "bad4", the percentage of errors above so
      many pixels; "d1", the percentage of errors above both 3 pixels and 5 % of the disparity.
      Empty without a valid pixel.
    """
    count = sums["pixels"]
    if not count:
        return {}
    shares = {f"bad{x}": 100 * sums[f"bad{x}"] / count for x in BAD}
    return {"epe": sums["error"] / count, "rms": (sums["square"] / count) ** 0.5, **shares, "d1": 100 * sums["outliers"] / count}


def flow_sums(
    prediction: Float[np.ndarray, "*pixels 2"], target: Float[np.ndarray, "*pixels 2"], valid: Bool[np.ndarray, "*pixels"]
) -> dict[str, float]:
    """Returns sums over a flow field's valid pixels, to be added up in the order of images.

    Args:
      prediction: Predicted motion in pixels, x and y.
      target: True motion in pixels.
      valid: True where the truth is known.
    """
    off = np.linalg.norm(prediction[valid].astype(np.float64) - target[valid].astype(np.float64), axis=-1)
    magnitude = np.linalg.norm(target[valid].astype(np.float64), axis=-1)
    sums = {"pixels": len(off), "error": off.sum()} | {f"within{x}": np.count_nonzero(off < x) for x in FLOW}
    sums["outliers"] = np.count_nonzero((off > 3) & (off > 0.05 * magnitude))
    return {name: float(value) for name, value in sums.items()}


def flow_scores(sums: dict[str, float]) -> dict[str, float]:
    """Returns scores from the sums of a set.

    Returns:
      "epe", the mean length of the error in pixels; "1px", "3px", "5px", the percentage of errors
      below so many pixels; "fl", the percentage of errors above both 3 pixels and 5 % of the
      motion. Empty without a valid pixel.
    """
    count = sums["pixels"]
    if not count:
        return {}
    shares = {f"{x}px": 100 * sums[f"within{x}"] / count for x in FLOW}
    return {"epe": sums["error"] / count, **shares, "fl": 100 * sums["outliers"] / count}

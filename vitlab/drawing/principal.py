"""Maps of features as colours: their first three principal components are red, green and blue."""

import numpy as np
from jaxtyping import Float, UInt8

_ENDS = (1.0, 99.0)  # percentiles of a component that become the darkest and the brightest


def principal_colours(maps: Float[np.ndarray, "n h w d"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Projects the tokens of all maps together on their first three principal components, as
    DINOv2's figures do (Oquab et al., arXiv:2304.07193, figure 1).

    Like parts of different pictures get like colours. A component's sign is that of its largest
    loading, so that the picture is the same every time.

    Raises:
      ValueError: The features are not finite.
    """
    tokens = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    if not np.isfinite(tokens).all():
        raise ValueError("the maps have NaN or infinity: the weights are damaged")
    tokens = tokens - tokens.mean(0)
    _, axes = np.linalg.eigh(tokens.T @ tokens)
    axes = axes[:, ::-1][:, :3]  # the largest first
    axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1.0, 1.0)
    parts = np.zeros((len(tokens), 3))
    parts[:, : axes.shape[1]] = tokens @ axes
    least, most = np.percentile(parts, _ENDS, axis=0)
    scaled = np.clip((parts - least) / np.maximum(most - least, 1e-12), 0, 1)
    return (255 * scaled).round().astype(np.uint8).reshape(*maps.shape[:3], 3)

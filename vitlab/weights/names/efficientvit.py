"""Names of timm's `efficientvit_m*`."""

import math

import numpy as np

from vitlab.weights.rules import Rule


def table_of_distances(table: np.ndarray) -> np.ndarray:
    """[heads, w * w] in the order of |dy|, |dx| as [heads, w, w]."""
    side = math.isqrt(table.shape[1])
    return table.reshape(-1, side, side)


RULES = (
    Rule(r"\.bn\.", ".norm."),
    Rule(r"^head\.norm\.", "norm."),
    Rule(r"^head\.linear\.", "head."),
    Rule(r"^patch_embed\.conv(\d)\.", lambda m: f"patch_embed.convs.{int(m[1]) - 1}."),
    Rule(r"\.downsample\.res(\d)\.0\.m\.", r".downsample.dw\1.conv."),
    Rule(r"\.downsample\.res(\d)\.1\.m\.", r".downsample.ffn\1."),
    Rule(r"\.downsample\.patchmerge\.", ".downsample.merge."),
    Rule(r"\.(dw\d)\.m\.", r".\1.conv."),
    Rule(r"\.(ffn\d)\.m\.", r".\1."),
    Rule(r"\.mixer\.m\.attn\.", ".mixer."),
    Rule(r"\.mixer\.proj\.1\.", ".mixer.proj."),
    Rule(r"\.attention_biases$", ".attention_biases", table_of_distances),
)
IGNORED = (r"attention_bias_idxs$",)  # follows from the window

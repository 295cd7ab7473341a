"""Names of qhfan/RALA's checkpoints, where the downsampling stands at the end of the stage before."""

import numpy as np

from vitlab.weights.rules import Rule

_EVERY_THIRD = r"^patch_embed\.proj\.(\d+)\."  # convolution, batch norm, GELU

RULES = (
    Rule(_EVERY_THIRD, lambda m: f"patch_embed.{'norms' if int(m[1]) % 3 else 'convs'}.{int(m[1]) // 3}."),
    Rule(r"^layers\.(\d+)\.downsample\.reduction\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    Rule(r"^layers\.(\d+)\.downsample\.norm\.", lambda m: f"layers.{int(m[1]) + 1}.norm."),
    Rule(r"\.(norm\d)\.norm\.", r".\1."),
    Rule(r"\.pos\.", ".pos.proj."),
    Rule(r"\.ffn\.dwconv\.", ".mlp.conv.proj."),
    Rule(r"\.ffn\.", ".mlp."),
    Rule(r"\.gamma_(\d)$", r".ls\1.gamma", np.ravel),
)
IGNORED = (r"RoPE\.angle$",)  # constants

"""Names of SHI-Labs/Neighborhood-Attention-Transformer's checkpoints.

The merging stands at the end of the stage before; the isotropic networks have their blocks in `layers`, DiNAT_s its stages.
"""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^layers\.(\d+)\.(blocks|downsample)\.", r"levels.\1.\2."),
    Rule(r"^layers\.(\d+)\.", r"levels.0.blocks.\1."),
    Rule(r"^levels\.(\d+)\.downsample\.", lambda m: f"levels.{int(m[1]) + 1}.downsample."),
    Rule(r"^patch_embed\.proj\.(\d)\.", lambda m: f"patch_embed.conv{int(m[1]) + 1}."),
    Rule(r"\.gamma(\d)$", r".ls\1.gamma"),
)
IGNORED = ()

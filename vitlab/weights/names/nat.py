"""Names of SHI-Labs/Neighborhood-Attention-Transformer's checkpoints.

The merging ends the stage before. `layers` holds the blocks of the isotropic networks, but the
stages of DiNAT_s.
"""

from vitlab.weights.rules import NameMap, Rule

SOURCE = "SHI-Labs/Neighborhood-Attention-Transformer"
_COMMON = (
    Rule("^levels.{i}.downsample.", "^levels.{i+1}.downsample."),
    Rule("^patch_embed.proj.{i}.", "^patch_embed.conv{i+1}."),
    Rule(".gamma{i}$", ".ls{i}.gamma$"),
)
MAPS = (
    NameMap(source=SOURCE, rules=_COMMON, suits=r"^patch_embed\.conv1\."),
    NameMap(
        source=f"{SOURCE}, DiNAT_s",
        rules=(Rule("^layers.{i}.{x:blocks|downsample}.", "^levels.{i}.{x}."), *_COMMON),
        suits=r"^levels\.1\.",
    ),
    NameMap(source=f"{SOURCE}, isotropic", rules=(Rule("^layers.{i}.", "^levels.0.blocks.{i}."), *_COMMON)),
)

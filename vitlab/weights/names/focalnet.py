"""Names of timm's `focalnet_*` and of microsoft/FocalNet's checkpoints.

timm puts the down-sampling at the start of a stage, as here; the authors put it at the end of the
stage before (their stage 0 has one). The authors call the stem patch_embed and the layer scales
gamma_1 and gamma_2.
"""

from vitlab.weights.rules import NameMap, Rule, pointwise

_RULES = (
    Rule("^head.fc.", "^head."),
    Rule(".focal_layers.{i}.0.", ".focal_layers.{i}."),
    Rule(".modulation.ln.", ".modulation.norm."),
)
_TIMM = (*_RULES, *pointwise(".modulation.{x:f|h|proj}", ".mlp.fc{i}"))
MAPS = (
    # Large and up, whose norms come after their branches, and which have layer scales.
    NameMap(source="timm", rules=(Rule(".norm{i}_post.", ".norm{i}."), *_TIMM), suits=r"\.ls1\.gamma$"),
    NameMap(source="timm", rules=_TIMM),
    NameMap(
        source="microsoft/FocalNet",
        rules=(
            Rule("^patch_embed.", "^stem."),
            Rule(".gamma_{i}$", ".ls{i}.gamma$"),
            Rule("^layers.{i}.downsample.", "^layers.{i+1}.downsample."),
            *_RULES[1:],
        ),
    ),
)

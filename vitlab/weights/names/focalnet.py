"""Names of timm's `focalnet_*` and of microsoft/FocalNet's checkpoints.

timm puts the downsampling at the start of a stage, as here; the authors put it at the end of the stage before (their stage 0
has one) and call the stem patch_embed and the layer scales gamma_1 and gamma_2.
"""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^head\.fc\.", "head."),
    Rule(r"\.focal_layers\.(\d+)\.0\.", r".focal_layers.\1."),
    Rule(r"\.modulation\.ln\.", ".modulation.norm."),
)
AUTHORS_RULES = (
    Rule(r"^patch_embed\.", "stem."),
    Rule(r"\.gamma_(\d)$", r".ls\1.gamma"),
    Rule(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    *RULES,
)
IGNORED = ()


def rules_for(names: set[str]) -> tuple[Rule, ...]:
    return AUTHORS_RULES if any(n.startswith("patch_embed.") for n in names) else RULES

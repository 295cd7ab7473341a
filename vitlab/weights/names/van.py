"""Names of Visual-Attention-Network/VAN-Classification's checkpoints, which number the stages from 1 in the names of their parts."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embed."),
    Rule(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    Rule(r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    Rule(r"\.layer_scale_(\d)$", r".ls\1.gamma"),
    Rule(r"\.dwconv\.dwconv\.", ".dwconv."),
)
IGNORED = ()

"""Names of badripatro/SpectFormers' hierarchical checkpoints, which number the stages from 1 in the names of their parts."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^patch_embed1\.conv\.(\d)\.", lambda m: f"stem.{'norms' if int(m[1]) % 3 else 'convs'}.{int(m[1]) // 3}."),
    Rule(r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.embed_norm."),
    Rule(r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.proj."),
    Rule(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    Rule(r"^norm([123])\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    Rule(r"^norm4\.", "norm."),
    Rule(r"^post_network\.0\.", "class_block."),
    Rule(r"\.dwconv\.dwconv\.", ".dwconv."),
)
IGNORED = ()

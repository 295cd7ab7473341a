"""Names of AFeng-x/SMT's checkpoints, which number the stages from 1 in the names of their parts."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^patch_embed1\.conv\.0\.", "stages.0.stem.conv1."),
    Rule(r"^patch_embed1\.conv\.1\.", "stages.0.stem.norm1."),
    Rule(r"^patch_embed1\.conv\.3\.", "stages.0.stem.conv2."),
    Rule(r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.embed_norm."),
    Rule(r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.proj."),
    Rule(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    Rule(r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    Rule(r"\.local_conv_(\d)\.", lambda m: f".local_convs.{int(m[1]) - 1}."),
    Rule(r"\.dwconv\.dwconv\.", ".dwconv."),
    Rule(r"\.gamma_(\d)$", r".ls\1.gamma"),
)
IGNORED = ()

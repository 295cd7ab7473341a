"""Names of timm's `crossvit_*` and of IBM/CrossViT's checkpoints (which have `pos_embed.0` for `pos_embed_0`)."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^(pos_embed|cls_token)[._](\d)$", r"embeddings.\2.\1"),
    Rule(r"^patch_embed\.(\d)\.proj\.(\d)\.", lambda m: f"embeddings.{m[1]}.patch_embed.convs.{int(m[2]) // 2}."),
    Rule(r"^patch_embed\.(\d)\.", r"embeddings.\1.patch_embed."),
    Rule(r"^blocks\.(\d)\.", r"encoders.\1."),
    Rule(r"\.projs\.(\d)\.0\.", r".fusions.\1.project.norm."),
    Rule(r"\.projs\.(\d)\.2\.", r".fusions.\1.project.linear."),
    Rule(r"\.revert_projs\.(\d)\.0\.", r".fusions.\1.revert.norm."),
    Rule(r"\.revert_projs\.(\d)\.2\.", r".fusions.\1.revert.linear."),
    Rule(r"\.fusion\.(\d)\.(0\.)?", r".fusions.\1."),
    Rule(r"^norm\.", "norms."),
    Rule(r"^head\.0\.", "head.small."),
    Rule(r"^head\.1\.", "head.large."),
)
IGNORED = ()

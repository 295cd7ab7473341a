"""Names of timm's `crossvit_*` and of IBM/CrossViT's checkpoints.

IBM's have `pos_embed.0` for timm's `pos_embed_0`.
"""

from vitlab.weights.rules import NameMap, Rule

_RULES = (
    Rule("^patch_embed.{i}.proj.{2j}.", "^embeddings.{i}.patch_embed.convs.{j}."),
    Rule("^patch_embed.{i}.", "^embeddings.{i}.patch_embed."),
    Rule("^blocks.{i}.", "^encoders.{i}."),
    Rule(".fusion.{i}.0.", ".fusions.{i}."),
    Rule(".fusion.{i}.", ".fusions.{i}."),
    Rule(".projs.{i}.0.", ".fusions.{i}.project.norm."),
    Rule(".projs.{i}.2.", ".fusions.{i}.project.linear."),
    Rule(".revert_projs.{i}.0.", ".fusions.{i}.revert.norm."),
    Rule(".revert_projs.{i}.2.", ".fusions.{i}.revert.linear."),
    Rule("^norm.", "^norms."),
    Rule("^head.0.", "^head.small."),
    Rule("^head.1.", "^head.large."),
)
MAPS = (
    NameMap(source="timm", rules=(Rule("^{x:pos_embed|cls_token}_{i}$", "^embeddings.{i}.{x}$"), *_RULES)),
    NameMap(source="IBM/CrossViT", rules=(Rule("^{x:pos_embed|cls_token}.{i}$", "^embeddings.{i}.{x}$"), *_RULES)),
)

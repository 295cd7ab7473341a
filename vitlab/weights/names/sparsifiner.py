"""Names of lim142857/Sparsifiner's networks, which are DeiT's and LV-ViT's but for the
predictors.
"""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="lim142857/Sparsifiner",
        rules=(
            Rule("^{x:cls_token|pos_embed}$", "^embed.{x}$"),
            Rule("^patch_embed.conv{i+1}.", "^stem.convs.{i}."),
            Rule("^patch_embed.bn{i+1}.", "^stem.norms.{i}."),
            Rule("^patch_embed.", "^embed.patch_embed."),
        ),
    ),
)

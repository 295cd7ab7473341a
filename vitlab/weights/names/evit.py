"""Names of youweiliang/evit's checkpoints, which are timm's of DeiT."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="youweiliang/evit",
        rules=(Rule("^{x:cls_token|pos_embed}$", "^embed.{x}$"), Rule("^patch_embed.", "^embed.patch_embed.")),
    ),
)

"""Names of timm's DeiT checkpoints; the cross-attention and its head have none there."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="timm",
        rules=(Rule("^{x:cls_token|pos_embed}$", "^embed.{x}$"), Rule("^patch_embed.", "^embed.patch_embed.")),
    ),
)

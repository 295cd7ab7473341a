"""Names of hustvl/Vim's checkpoints, whose class token stands in the middle of the positions."""

from vitlab.weights.names.bidirectional_mamba import rules
from vitlab.weights.rules import MiddleFirst, NameMap, Rule

MAPS = (
    NameMap(
        source="hustvl/Vim",
        rules=(
            Rule("^cls_token$", "^embed.cls_token$"),
            Rule("^pos_embed$", "^embed.pos_embed$", MiddleFirst()),
            Rule("^patch_embed.", "^embed.patch_embed."),
            Rule("^layers.{i}.", "^blocks.{i}."),
            *rules("^blocks.{i}.mixer."),
            Rule("^norm_f.", "^norm."),
        ),
    ),
)

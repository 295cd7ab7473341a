"""Names of LeapLabTHU/InLine's PVT checkpoints, which count stages from 1."""

from vitlab.weights.names import inline_deit
from vitlab.weights.rules import NameMap, Rule

STAGES = (
    Rule("^pos_embed{i}$", "^stages.{i-1}.embed.pos_map$"),
    Rule("^patch_embed{i}.", "^stages.{i-1}.embed.patch_embed."),
    Rule("^block{i}.", "^stages.{i-1}.blocks."),
)
MAPS = (NameMap(source=inline_deit.SOURCE, rules=(*STAGES, *inline_deit.RESIDUAL)),)

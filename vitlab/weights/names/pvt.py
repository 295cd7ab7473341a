"""Names of whai362/PVT's checkpoints, whose stages are counted from 1; the last position embedding
begins with the class token's.
"""

from vitlab.weights.names import inline_pvt
from vitlab.weights.rules import NameMap, Rule

MAPS = (NameMap(source="whai362/PVT", rules=(Rule("^pos_embed4$", "^stages.3.embed.pos_tokens$"), *inline_pvt.STAGES)),)

"""Names of LeapLabTHU/Agent-Attention's DeiT checkpoints; biases as in its Swin and PVT."""

from vitlab.weights.rules import Axes, NameMap, Rule

SOURCE = "LeapLabTHU/Agent-Attention"
# Axes: n heads, a agents, h rows, w columns, c class tokens.
BIASES = (
    Rule(".ah_bias$", ".ah_bias$", Axes("1nah1", "nah")),
    Rule(".aw_bias$", ".aw_bias$", Axes("1na1w", "naw")),
    Rule(".ha_bias$", ".ha_bias$", Axes("1nh1a", "nah")),
    Rule(".wa_bias$", ".wa_bias$", Axes("1n1wa", "naw")),
)
MAPS = (
    NameMap(
        source=SOURCE,
        rules=(
            Rule("^{x:cls_token|pos_embed}$", "^embed.{x}$"),
            Rule("^patch_embed.", "^embed.patch_embed."),
            *BIASES,
            Rule(".ac_bias$", ".ac_bias$", Axes("1nac", "nac")),
            Rule(".ca_bias$", ".ca_bias$", Axes("1nca", "nac")),
        ),
    ),
)

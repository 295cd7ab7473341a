"""Names of LeapLabTHU/InLine's DeiT checkpoints."""

from vitlab.weights.rules import Axes, NameMap, Rule

SOURCE = "LeapLabTHU/InLine"
RESIDUAL = (
    Rule(".residual.{2i}.", ".residual{i+1}."),  # a GELU stands between the two
    Rule(".residual{i}.weight$", ".residual{i}.weight$", Axes("oi1", "oi11")),
)
MAPS = (
    NameMap(
        source=SOURCE,
        rules=(Rule("^{x:cls_token|pos_embed}$", "^embed.{x}$"), Rule("^patch_embed.", "^embed.patch_embed."), *RESIDUAL),
    ),
)

"""Names of techmonsterwang/iLLaMA's checkpoints, whose class token is the last."""

from vitlab.weights.rules import LastFirst, NameMap, Rule

MAPS = (
    NameMap(
        source="techmonsterwang/iLLaMA",
        rules=(
            Rule("^cls_token$", "^embed.cls_token$"),
            Rule("^pos_embed$", "^embed.pos_embed$", LastFirst()),
            Rule("^patch_embed.", "^embed.patch_embed."),
            Rule(".mlp.fc1.", ".mlp.fc1_g."),
            Rule(".mlp.fc3.", ".mlp.fc1_x."),
        ),
    ),
)

"""Names of timm's `davit_*` and of dingmyu/davit: a block pair is `blocks.i.0` (windows) and
`blocks.i.1` (channels).
"""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(source="timm", rules=(Rule("^head.norm.", "^norm."), Rule("^head.fc.", "^head."))),
    NameMap(
        source="dingmyu/davit",
        rules=(
            Rule("^patch_embeds.0.proj.", "^stem.conv."),
            Rule("^patch_embeds.0.norm.", "^stem.norm."),
            Rule("^patch_embeds.{i}.proj.", "^stages.{i}.downsample.conv."),
            Rule("^patch_embeds.{i}.norm.", "^stages.{i}.downsample.norm."),
            Rule("^main_blocks.{i}.", "^stages.{i}.blocks."),
            Rule(".cpe.{i}.", ".cpe{i+1}."),
            Rule("^norms.", "^norm."),
        ),
    ),
)

"""Names of timm's `mambaout_*`."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^head.norm.", "^norm."),
            Rule("^head.pre_logits.fc.", "^head.fc1."),
            Rule("^head.pre_logits.norm.", "^head.norm."),
            Rule("^head.fc.", "^head.fc2."),
            Rule(".blocks.{i}.{x:fc1|fc2|conv}.", ".blocks.{i}.mixer.{x}."),
        ),
    ),
)

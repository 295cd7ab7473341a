"""Names of timm's `mambaout_*` and of yuweihao/MambaOut."""

from vitlab.weights.rules import NameMap, Rule

_MIXER = Rule(".blocks.{i}.{x:fc1|fc2|conv}.", ".blocks.{i}.mixer.{x}.")
MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^head.norm.", "^norm."),
            Rule("^head.pre_logits.fc.", "^head.fc1."),
            Rule("^head.pre_logits.norm.", "^head.norm."),
            Rule("^head.fc.", "^head.fc2."),
            _MIXER,
        ),
    ),
    NameMap(
        source="yuweihao/MambaOut",
        rules=(
            Rule("^downsample_layers.0.", "^stem."),
            Rule("^downsample_layers.{i}.", "^stages.{i}.downsample."),
            Rule("^stages.{i}.{j}.", "^stages.{i}.blocks.{j}."),
            _MIXER,
        ),
    ),
)

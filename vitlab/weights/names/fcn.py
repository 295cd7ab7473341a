"""Names of mmsegmentation's `FCNHead`."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="mmsegmentation",
        rules=(
            Rule("^conv_cat.", "^concat_conv."),
            Rule(".bn.", ".norm."),
            Rule("^conv_seg.", "^classifier.conv."),
        ),
    ),
)

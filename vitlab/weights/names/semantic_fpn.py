"""Names of mmsegmentation's `FPNHead`, whose levels hold convolutions at even and resizing at odd places."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="mmsegmentation",
        rules=(
            Rule("^scale_heads.{i}.{2j}.", "^levels.{i}.{j}."),
            Rule(".bn.", ".norm."),
            Rule("^conv_seg.", "^classifier.conv."),
        ),
    ),
)

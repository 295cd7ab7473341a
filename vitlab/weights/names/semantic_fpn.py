"""Names of mmsegmentation's `FPNHead`.

Even places of its levels hold convolutions, odd places resizing.
"""

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

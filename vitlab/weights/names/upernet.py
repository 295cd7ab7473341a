"""Names of mmsegmentation's `UPerHead`.

Each pooled map holds the pooling at place 0 and the convolution at place 1.
"""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="mmsegmentation",
        rules=(
            Rule("^psp_modules.{i}.1.", "^pooled.{i}."),
            Rule("^lateral_convs.", "^laterals."),
            Rule("^fpn_convs.", "^convs."),
            Rule("^fpn_bottleneck.", "^fusion."),
            Rule(".bn.", ".norm."),
            Rule("^conv_seg.", "^classifier.conv."),
        ),
    ),
)

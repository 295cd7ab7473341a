"""Names of speedinghzl/CCNet's head, `RCCAModule`."""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="speedinghzl/CCNet",
        rules=(
            Rule("^conva.0.", "^conv1.conv."),
            Rule("^conva.1.", "^conv1.norm."),
            Rule("^convb.0.", "^conv2.conv."),
            Rule("^convb.1.", "^conv2.norm."),
            Rule("^bottleneck.0.", "^fusion.conv."),
            Rule("^bottleneck.1.", "^fusion.norm."),
            Rule("^bottleneck.3.", "^classifier.conv."),
            Rule("^cca.", "^rcca.cca."),
            *pointwise("^rcca.cca.{x:query|key|value}_conv"),
        ),
    ),
)

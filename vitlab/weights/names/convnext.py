"""Names of timm's `convnext_*` and `convnextv2_*`, and of the authors' checkpoints.

In timm the MLPs of atto to nano, which have two blocks in the first stage, are convolutions.
"""

from vitlab.weights.rules import Axes, NameMap, Rule, pointwise

_TIMM = (
    Rule("^stem.0.", "^stages.0.downsample.conv."),
    Rule("^stem.1.", "^stages.0.downsample.norm."),
    Rule("^stages.{i+1}.downsample.0.", "^stages.{i+1}.downsample.norm."),
    Rule("^stages.{i+1}.downsample.1.", "^stages.{i+1}.downsample.conv."),
    Rule(".blocks.{i}.conv_dw.", ".blocks.{i}.conv."),
    Rule(".grn.weight$", ".grn.gamma$"),
    Rule(".grn.bias$", ".grn.beta$"),
    Rule(".blocks.{i}.gamma$", ".blocks.{i}.ls.gamma$"),
    Rule("^head.norm.", "^norm."),
    Rule("^head.fc.", "^head."),
)
MAPS = (
    NameMap(source="timm", rules=_TIMM, suits=r"^stages\.0\.blocks\.2\."),
    NameMap(source="timm", rules=(*_TIMM, *pointwise(".mlp.fc{i}"))),
    NameMap(
        source="facebookresearch/ConvNeXt",
        rules=(
            Rule("^downsample_layers.0.0.", "^stages.0.downsample.conv."),
            Rule("^downsample_layers.0.1.", "^stages.0.downsample.norm."),
            Rule("^downsample_layers.{i+1}.0.", "^stages.{i+1}.downsample.norm."),
            Rule("^downsample_layers.{i+1}.1.", "^stages.{i+1}.downsample.conv."),
            Rule("^stages.{i}.{j}.", "^stages.{i}.blocks.{j}."),
            Rule(".blocks.{i}.dwconv.", ".blocks.{i}.conv."),
            Rule(".pwconv{i}.", ".mlp.fc{i}."),
            Rule(".blocks.{i}.grn.{x:gamma|beta}$", ".blocks.{i}.mlp.grn.{x}$", Axes("111c", "c")),
            Rule(".blocks.{i}.gamma$", ".blocks.{i}.ls.gamma$"),
        ),
    ),
)

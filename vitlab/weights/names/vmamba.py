"""Names of MzeroMiko/VMamba's checkpoints, whose stages end with the next one's downsampling."""

from vitlab.weights.names.ss2d import rules
from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="MzeroMiko/VMamba",
        rules=(
            Rule("^patch_embed.0.", "^stages.0.downsample.first.conv."),
            Rule("^patch_embed.2.", "^stages.0.downsample.first.norm."),
            Rule("^patch_embed.5.", "^stages.0.downsample.second.conv."),
            Rule("^patch_embed.7.", "^stages.0.downsample.second.norm."),
            Rule("^layers.{i}.downsample.1.", "^stages.{i+1}.downsample.conv."),
            Rule("^layers.{i}.downsample.3.", "^stages.{i+1}.downsample.norm."),
            Rule("^layers.{i}.blocks.{j}.", "^stages.{i}.blocks.{j}."),
            Rule("^stages.{i}.blocks.{j}.norm.", "^stages.{i}.blocks.{j}.norm1."),
            *rules("^stages.{i}.blocks.{j}.op."),
            *pointwise("^stages.{i}.blocks.{j}.mlp.fc{k}"),
            Rule("^classifier.{x:norm|head}.", "^{x}."),
        ),
    ),
)

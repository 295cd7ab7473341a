"""Names of rayleizhu/BiFormer's checkpoints.

In the Swin layout the blocks are one level deeper and norms come first.
"""

from vitlab.weights.rules import NameMap, Rule

SOURCE = "rayleizhu/BiFormer"
SWIN_DOWNSAMPLING = (
    Rule("^downsample_layers.0.0.", "^stages.0.downsample.conv."),
    Rule("^downsample_layers.0.1.", "^stages.0.downsample.norm."),
    Rule("^downsample_layers.{i+1}.0.", "^stages.{i+1}.downsample.norm."),
    Rule("^downsample_layers.{i+1}.1.", "^stages.{i+1}.downsample.conv."),
)
_COMMON = (
    Rule(".pos_embed.", ".pos_embed.proj."),
    Rule("^stages.{x:0|1|2}.blocks.{j}.attn.qkv.qkv.", "^stages.{x}.blocks.{j}.attn.qkv."),  # the last stage has no routing
    Rule(".mlp.0.", ".mlp.fc1."),
    Rule(".mlp.2.", ".mlp.fc2."),
    Rule(".mlp.3.", ".mlp.fc2."),
)
MAPS = (
    NameMap(
        source=SOURCE,
        rules=(
            Rule("^downsample_layers.0.0.", "^stages.0.downsample.conv1."),
            Rule("^downsample_layers.0.1.", "^stages.0.downsample.norm1."),
            Rule("^downsample_layers.0.3.", "^stages.0.downsample.conv2."),
            Rule("^downsample_layers.0.4.", "^stages.0.downsample.norm2."),
            Rule("^downsample_layers.{i}.0.", "^stages.{i}.downsample.conv."),
            Rule("^downsample_layers.{i}.1.", "^stages.{i}.downsample.norm."),
            Rule("^stages.{i}.{j}.", "^stages.{i}.blocks.{j}."),
            *_COMMON,
        ),
        suits=r"^stages\.0\.downsample\.conv1\.",
    ),
    NameMap(
        source=f"{SOURCE}, Swin layout",
        rules=(
            *SWIN_DOWNSAMPLING,
            *_COMMON,
        ),
    ),
)

"""Names of rayleizhu/BiFormer's checkpoints; in the Swin layout the blocks are one level deeper and norms come first."""

from vitlab.weights.rules import Rule

_COMMON = (
    Rule(r"^(stages\.\d+)\.(\d+)\.", r"\1.blocks.\2."),
    Rule(r"\.pos_embed\.", ".pos_embed.proj."),
    Rule(r"\.qkv\.qkv\.", ".qkv."),
    Rule(r"\.mlp\.0\.", ".mlp.fc1."),
    Rule(r"\.mlp\.[23]\.", ".mlp.fc2."),
)
RULES = (
    Rule(r"^downsample_layers\.0\.0\.", "stages.0.downsample.conv1."),
    Rule(r"^downsample_layers\.0\.1\.", "stages.0.downsample.norm1."),
    Rule(r"^downsample_layers\.0\.3\.", "stages.0.downsample.conv2."),
    Rule(r"^downsample_layers\.0\.4\.", "stages.0.downsample.norm2."),
    Rule(r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.conv."),
    Rule(r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.norm."),
    *_COMMON,
)
SWIN_LAYOUT_RULES = (
    Rule(r"^downsample_layers\.0\.0\.", "stages.0.downsample.conv."),
    Rule(r"^downsample_layers\.0\.1\.", "stages.0.downsample.norm."),
    Rule(r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.norm."),
    Rule(r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.conv."),
    *_COMMON[1:],
)
IGNORED = ()


def rules_for(names: set[str]) -> tuple[Rule, ...]:
    return SWIN_LAYOUT_RULES if any(n.startswith("stages.0.blocks.") for n in names) else RULES

"""Names of rayleizhu/GLMix's checkpoints; in the Swin layout norms come before the convolutions."""

from vitlab.weights.rules import Rule

_COMMON = (
    Rule(r"\.pos_conv\.", ".pos_conv.proj."),
    Rule(r"\.(slot_scale|init_slots)$", r".mixer.\1"),
    Rule(r"\.relation_mha\.", ".mixer.relation_mha."),
    Rule(r"\.mha_op\.", ".mixer."),
    Rule(r"\.in_proj_(weight|bias)$", r".qkv.\1"),
    Rule(r"\.out_proj\.", ".proj."),
    Rule(r"\.feature_conv\.0\.", ".mixer.local_in."),
    Rule(r"\.feature_conv\.1\.", ".mixer.local_conv."),
    Rule(r"\.feature_conv\.2\.", ".mixer.local_out."),
    Rule(r"\.mlp\.0\.", ".mlp.fc1."),
    Rule(r"\.mlp\.1\.", ".mlp.dwconv."),
    Rule(r"\.mlp\.[23]\.", ".mlp.fc2."),
)
RULES = (
    Rule(r"^downsample_layers\.0\.1\.", "stages.0.downsample.conv1."),
    Rule(r"^downsample_layers\.0\.2\.", "stages.0.downsample.norm1."),
    Rule(r"^downsample_layers\.0\.4\.", "stages.0.downsample.conv2."),
    Rule(r"^downsample_layers\.0\.5\.", "stages.0.downsample.norm2."),
    Rule(r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.conv."),
    Rule(r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.norm."),
    *_COMMON,
)
SWIN_LAYOUT_RULES = (
    Rule(r"^downsample_layers\.0\.0\.", "stages.0.downsample.conv."),
    Rule(r"^downsample_layers\.0\.1\.", "stages.0.downsample.norm."),
    Rule(r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.norm."),
    Rule(r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.conv."),
    *_COMMON,
)
IGNORED = ()


def rules_for(names: set[str]) -> tuple[Rule, ...]:
    return SWIN_LAYOUT_RULES if any(n.startswith("downsample_layers.0.0.") for n in names) else RULES

"""Names of hhb072/STViT's checkpoints, where the downsampling stands at the end of the stage before."""

from vitlab.weights.rules import Rule

_EVERY_THIRD = r"^patch_embed\.proj\.(\d+)\."  # convolution, GELU, batch norm

RULES = (
    Rule(_EVERY_THIRD, lambda m: f"patch_embed.{'norms' if int(m[1]) % 3 else 'convs'}.{int(m[1]) // 3}."),
    Rule(r"^layers\.(\d+)\.downsample\.proj\.0\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    Rule(r"^layers\.(\d+)\.downsample\.proj\.1\.", lambda m: f"layers.{int(m[1]) + 1}.norm."),
    Rule(r"\.pos_embed\.conv\.", ".pos_embed.proj."),
    Rule(r"\.norm1\.norm\.", ".norm1."),
    Rule(r"\.mlp2\.conv\.conv\.", ".mlp.conv.proj."),
    Rule(r"\.mlp2\.", ".mlp."),
    Rule(r"\.gamma_(\d)$", r".ls\1.gamma"),
)
IGNORED = (r"fold\.weights$",)  # fixed one-hot kernels

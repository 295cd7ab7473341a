"""Names of timm's `shvit_s*`."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"\.c\.", ".conv."),
    Rule(r"\.bn\.", ".norm."),
    Rule(r"^head\.norm\.", "norm."),
    Rule(r"^head\.l\.", "head."),
    Rule(r"^patch_embed\.(\d)\.", lambda m: f"patch_embed.convs.{int(m[1]) // 2}."),
    Rule(r"\.downsample\.([03])\.m\.", lambda m: f".downsample.dw{1 + int(m[1]) // 3}.conv."),
    Rule(r"\.downsample\.([14])\.m\.", lambda m: f".downsample.ffn{1 + int(m[1]) // 3}."),
    Rule(r"\.downsample\.2\.", ".downsample.merge."),
    Rule(r"\.conv\.m\.", ".conv.conv."),
    Rule(r"\.(mixer|ffn)\.m\.", r".\1."),
    Rule(r"\.mixer\.proj\.1\.", ".mixer.proj."),
)
IGNORED = ()

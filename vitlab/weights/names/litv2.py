"""Names of ziplab/LITv2's checkpoints, where the token merging stands at the end of the stage before."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    Rule(r"\.dconv\.(weight|bias)$", r".dconv.conv.\1"),
    Rule(r"\.downsample\.norm_layer\.", ".downsample.norm."),
    Rule(r"\.dwconv\.dwconv\.", ".dwconv."),
)
IGNORED = ()

"""Names of cheerss/CrossFormer's checkpoints, where the merging stands at the end of the stage before."""

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^patch_embed\.norm\.", "embed_norm."),
    Rule(r"^layers\.(\d+)\.downsample\.norm\.", lambda m: f"layers.{int(m[1]) + 1}.norm."),
    Rule(r"^layers\.(\d+)\.downsample\.reductions\.", lambda m: f"layers.{int(m[1]) + 1}.reductions.projs."),
    Rule(r"\.pos\.pos(\d)\.0\.", lambda m: f".pos.norms.{int(m[1]) - 1}."),
    Rule(r"\.pos\.pos(\d)\.2\.", lambda m: f".pos.layers.{int(m[1]) - 1}."),
)
IGNORED = (r"\.biases$", r"relative_position_index$", r"attn_mask$")  # follow from the group size

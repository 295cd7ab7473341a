"""Names of LeapLabTHU/Agent-Attention's DeiT checkpoints, and the layout of the biases that its Swin and PVT share."""

from vitlab.weights.rules import Rule

# The authors' axes of length one go, agents come before positions.
BIASES = (
    Rule(r"(\.ah_bias)$", r"\1", lambda t: t[0, ..., 0]),  # 1 heads agents rows 1
    Rule(r"(\.aw_bias)$", r"\1", lambda t: t[0, :, :, 0]),  # 1 heads agents 1 columns
    Rule(r"(\.ha_bias)$", r"\1", lambda t: t[0, :, :, 0].swapaxes(1, 2)),  # 1 heads rows 1 agents
    Rule(r"(\.wa_bias)$", r"\1", lambda t: t[0, :, 0].swapaxes(1, 2)),  # 1 heads 1 columns agents
)
RULES = (
    Rule(r"^(cls_token|pos_embed)$", r"embed.\1"),
    Rule(r"^patch_embed\.", "embed.patch_embed."),
    *BIASES,
    Rule(r"(\.ac_bias)$", r"\1", lambda t: t[0]),  # 1 heads agents 1
    Rule(r"(\.ca_bias)$", r"\1", lambda t: t[0].swapaxes(1, 2)),  # 1 heads 1 agents
)
IGNORED = ()

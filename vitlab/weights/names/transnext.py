"""Names of DaiShiResearch/TransNeXt's and SkyworkAI/MoH's checkpoints, which number the stages from
1 in the names of their parts.
"""

from vitlab.weights.rules import Axes, NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="DaiShiResearch/TransNeXt",
        rules=(
            Rule("^patch_embed{i+1}.", "^stages.{i}.patch_embed."),
            Rule("^block{i+1}.", "^stages.{i}.blocks."),
            Rule("^norm{i+1}.", "^stages.{i}.norm."),
            Rule(".dwconv.dwconv.", ".dwconv."),
            Rule(".attn.temperature$", ".attn.scale.temperature$", Axes("n11", "n")),
            Rule(".attn.query_embedding$", ".attn.scale.query_embedding$", Axes("n1d", "nd")),
            Rule(".attn.learnable_bias$", ".attn.learnable_bias$", Axes("n1k", "nk")),
            Rule(".attn.cpb_fc{i}.", ".attn.bias.cpb_fc{i}."),
            Rule(".attn.{x:wg|wg_0|wg_1}.", ".attn.gates.{x}."),
            *pointwise(".attn.sr"),
        ),
        ignored=(r"relative_pos_index\d$", r"relative_coords_table\d$", r"padding_mask$", r"seq_length_scale$"),
    ),
)

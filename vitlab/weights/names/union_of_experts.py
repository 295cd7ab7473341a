"""Names of YujiaoYang-work/UoE's long-range-arena modules; a parameter of theirs that they do not
use has no counterpart here.
"""

from vitlab.weights.rules import Axes, NameMap, Rule

MAPS = (
    NameMap(
        source="YujiaoYang-work/UoE, attention",
        rules=(
            Rule("^switch_gate.", "^gate."),
            Rule("^W_qkv.weight.0$", "^qkv_kernel$"),
            Rule("^W_qkv.bias.0$", "^qkv_bias$", Axes("e1d", "ed")),
            Rule("^ff.weight.0$", "^out_kernel$"),
            Rule("^ff.bias$", "^out_bias$"),
        ),
        ignored=(r"^kv_norm\.", r"^layer_norm\."),
        suits="^qkv_kernel$",
    ),
    NameMap(
        source="YujiaoYang-work/UoE, perceptron",
        rules=(
            Rule("^switch_gate.w_gate.", "^gate."),
            Rule("^linear1.weight.0$", "^in_kernel$"),
            Rule("^linear1.bias.0$", "^in_bias$", Axes("e1d", "ed")),
            Rule("^linear2.weight.0$", "^out_kernel$"),
            Rule("^linear2.bias$", "^out_bias$"),
        ),
        ignored=(r"^switch_gate\.s_gate\.", r"^linear3\."),
    ),
)

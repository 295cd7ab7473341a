"""Names of microsoft/CSWin-Transformer's checkpoints, and of its agent and InLine forms, whose
stages are counted from 1.
"""

from vitlab.weights.names import agent_deit, inline_deit
from vitlab.weights.rules import NameMap, Rule

_STAGES = (
    Rule("^stage1_conv_embed.0.", "^stages.0.conv."),
    Rule("^stage1_conv_embed.2.", "^stages.0.norm."),
    Rule("^merge{i+1}.", "^stages.{i+1}."),
    Rule("^stage{i}.{j}.", "^stages.{i-1}.blocks.{j}."),
    Rule(".blocks.{j}.{x:qkv|proj}.", ".blocks.{j}.attn.{x}."),
)
MAPS = (
    NameMap(
        source=agent_deit.SOURCE,
        rules=(
            *_STAGES,
            Rule("^stages.{x:0|1}.blocks.{j}.attns.0.get_v.", "^stages.{x}.blocks.{j}.attn.dwc."),
            Rule(".attns.{i}.get_v.", ".attn.lepe.{i}."),
            Rule(".attns.0.{x:an|na|ah|aw|ha|wa}_bias$", ".attn.{x}_bias$"),
            *agent_deit.BIASES,
        ),
        suits=r"\.an_bias$",
    ),
    NameMap(
        source=inline_deit.SOURCE,
        rules=(
            *_STAGES,
            Rule("^stages.{x:0|1}.blocks.{j}.attns.0.get_v.", "^stages.{x}.blocks.{j}.attn.lepe."),
            Rule(".attns.{i}.get_v.", ".attn.lepe.{i}."),
            Rule(".attns.0.residual.", ".attn.residual."),
            *inline_deit.RESIDUAL,
        ),
        suits=r"\.residual1\.",
    ),
    NameMap(source="microsoft/CSWin-Transformer", rules=(*_STAGES, Rule(".attns.{i}.get_v.", ".attn.lepe.{i}."))),
)

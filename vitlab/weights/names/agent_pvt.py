"""Names of LeapLabTHU/Agent-Attention's PVT checkpoints, whose stages are counted from 1."""

from vitlab.weights.names import agent_deit, inline_pvt

RULES = (*inline_pvt.RULES, *agent_deit.BIASES)
IGNORED = ()

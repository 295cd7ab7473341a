"""Names of LeapLabTHU/Agent-Attention's PVT checkpoints, which count stages from 1."""

from vitlab.weights.names import agent_deit, inline_pvt
from vitlab.weights.rules import NameMap

MAPS = (NameMap(source=agent_deit.SOURCE, rules=(*inline_pvt.STAGES, *agent_deit.BIASES)),)

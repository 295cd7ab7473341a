"""Names of LeapLabTHU/Agent-Attention's Swin checkpoints: those of Swin's authors, and the biases of the agents."""

from vitlab.weights.names import agent_deit, swin
from vitlab.weights.rules import NameMap

MAPS = (NameMap(source=agent_deit.SOURCE, rules=(*swin.AUTHORS_RULES, *agent_deit.BIASES), ignored=swin.IGNORED),)

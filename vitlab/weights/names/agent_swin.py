"""Names of LeapLabTHU/Agent-Attention's Swin checkpoints: Swin's names, and the agents' biases."""

from vitlab.weights.names import agent_deit, swin
from vitlab.weights.rules import NameMap

MAPS = (NameMap(source=agent_deit.SOURCE, rules=(*swin.AUTHORS_RULES, *agent_deit.BIASES), ignored=swin.IGNORED),)

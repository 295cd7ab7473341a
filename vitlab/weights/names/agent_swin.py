"""Names of LeapLabTHU/Agent-Attention's Swin checkpoints: Swin's of its authors, and the biases of the agents."""

from vitlab.weights.names import agent_deit, swin

RULES = (*swin.AUTHORS_RULES, *agent_deit.BIASES)
IGNORED = swin.IGNORED

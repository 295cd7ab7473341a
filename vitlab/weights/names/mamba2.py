"""Names of state-spaces/mamba's Mamba2Simple."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (NameMap(source="state-spaces/mamba", rules=(Rule("^A_log$", "^a_log$"), Rule("^D$", "^skip$"))),)

"""Names of timm's `davit_*`: a block pair is `blocks.i.0` (windows) and `blocks.i.1` (channels)."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (NameMap(source="timm", rules=(Rule("^head.norm.", "^norm."), Rule("^head.fc.", "^head."))),)

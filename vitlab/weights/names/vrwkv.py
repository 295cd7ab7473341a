"""Names of OpenGVLab/Vision-RWKV's checkpoints, of the VRWKV of its first version."""

from vitlab.weights.names.vision_rwkv import rules
from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="OpenGVLab/Vision-RWKV",
        rules=(
            Rule("^patch_embed.projection.", "^patch_embed.proj."),
            Rule("^layers.{i}.", "^blocks.{i}."),
            Rule("^ln1.", "^norm."),
            Rule("^blocks.{i}.ln{j}.", "^blocks.{i}.norm{j}."),
            Rule("^blocks.{i}.gamma{j}$", "^blocks.{i}.ls{j}.gamma$"),
            Rule("^blocks.{i}.att.", "^blocks.{i}.attn."),
            Rule("^blocks.{i}.ffn.", "^blocks.{i}.mlp."),
            *rules("^blocks.{i}.{w:attn|mlp}."),
            Rule("^head.fc.", "^head."),
        ),
    ),
)

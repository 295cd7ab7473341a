"""Names of timm's `swin_*`, of microsoft/Swin-Transformer's checkpoints and of Hugging Face's.

timm puts the patch merging at the start of a stage, as here, and wraps the head. The authors put it
at the end of the stage before (their stage 0 has one, timm's has none).
"""

from vitlab.weights.rules import NameMap, Part, Rule, SquareTable

AUTHORS_RULES = (
    Rule("^layers.{i}.downsample.", "^layers.{i+1}.downsample."),
    Rule(".relative_position_bias_table$", ".rel_pos_bias$", SquareTable()),
)
IGNORED = (r"relative_position_index$", r"attn_mask$")  # buffers that follow from the architecture
MAPS = (
    NameMap(source="timm", rules=(Rule("^head.fc.", "^head."), *AUTHORS_RULES[1:]), ignored=IGNORED),
    NameMap(source="microsoft/Swin-Transformer", rules=AUTHORS_RULES, ignored=IGNORED),
    NameMap(
        source="huggingface/transformers",
        rules=(
            Rule("^embeddings.patch_embeddings.projection.", "^patch_embed.proj."),
            Rule("^embeddings.norm.", "^patch_embed.norm."),
            Rule("^encoder.layers.", "^layers."),
            *(
                Rule(f".attention.self.{n}.{{x:weight|bias}}$", ".attn.qkv.{x}$", Part(i, 3))
                for i, n in enumerate(("query", "key", "value"))
            ),
            Rule(".attention.self.", ".attn."),
            Rule(".attention.output.dense.", ".attn.proj."),
            Rule(".layernorm_before.", ".norm1."),
            Rule(".layernorm_after.", ".norm2."),
            Rule(".intermediate.dense.", ".mlp.fc1."),
            Rule(".output.dense.", ".mlp.fc2."),
            Rule("^layernorm.", "^norm."),
            Rule("^classifier.", "^head."),
            *AUTHORS_RULES,
        ),
        ignored=(*IGNORED, r"^embeddings\.mask_token$"),
    ),
)

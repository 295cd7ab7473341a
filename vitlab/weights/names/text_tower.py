"""Names of text towers: OpenAI's and OpenCLIP's, Hugging Face's and big_vision's."""

from vitlab.weights.names import vit_flax
from vitlab.weights.rules import Axes, NameMap, Part, Rule, Summand

_POSITIONS = Axes("nd", "1nd")
# Image towers, the temperature and bias of the pair, and constants.
_LEFTOVERS = (
    r"^(visual|vision_model|visual_projection|img)\.",
    r"^(logit_scale|logit_bias|t|b)$",
    r"(^|\.)(position_ids|attn_mask)$",
)


def _openai(prefix: str) -> NameMap:
    return NameMap(
        source="mlfoundations/open_clip" if prefix else "openai/CLIP",
        rules=(
            Rule(f"^{prefix}token_embedding.", "^token_embed."),
            Rule(f"^{prefix}positional_embedding$", "^pos_embed$", _POSITIONS),
            Rule(f"^{prefix}ln_final.", "^norm."),
            Rule(f"^{prefix}text_projection$", "^head.weight$", Axes("io", "oi")),
            Rule(f"^{prefix}text_projection.", "^head."),
            Rule(f"^{prefix}transformer.resblocks.{{i}}.", "^blocks.{i}."),
            Rule(".ln_{i}.", ".norm{i}."),
            Rule(".attn.in_proj_{x:weight|bias}$", ".attn.qkv.{x}$"),
            Rule(".attn.out_proj.", ".attn.proj."),
            Rule(".mlp.c_fc.", ".mlp.fc1."),
            Rule(".mlp.c_proj.", ".mlp.fc2."),
        ),
        ignored=_LEFTOVERS,
    )


_HUGGING_FACE = NameMap(
    source="huggingface/transformers, CLIP and SigLIP",
    rules=(
        Rule("^text_model.embeddings.token_embedding.", "^token_embed."),
        Rule("^text_model.embeddings.position_embedding.weight$", "^pos_embed$", _POSITIONS),
        Rule("^text_model.final_layer_norm.", "^norm."),
        Rule("^text_model.head.", "^head."),
        Rule("^text_projection.", "^head."),
        Rule("^text_model.encoder.layers.{i}.", "^blocks.{i}."),
        *(Rule(f".self_attn.{part}_proj.{{x:weight|bias}}$", ".attn.qkv.{x}$", Part(i, 3)) for i, part in enumerate("qkv")),
        Rule(".self_attn.out_proj.", ".attn.proj."),
        Rule(".layer_norm{i}.", ".norm{i}."),
    ),
    ignored=_LEFTOVERS,
)
_BIG_VISION = NameMap(
    source="google-research/big_vision",
    rules=(
        Rule("^txt.Embed_0.embedding$", "^token_embed.embedding$"),
        Rule("^txt.Encoder_0.pos_embedding$", "^pos_embed$", Summand(0, None)),  # early files have positions twice
        Rule("^txt.pos_embedding$", "^pos_embed$"),
        Rule("^txt.Encoder_0.encoder_norm.", "^norm."),
        *vit_flax.dense("^txt.head", "^head"),
        *vit_flax.blocks("^txt.Encoder_0.encoderblock_{i}."),
    ),
    ignored=_LEFTOVERS,
)
MAPS = (_openai(""), _openai("text."), _HUGGING_FACE, _BIG_VISION)

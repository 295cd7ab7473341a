"""Names of plain trunks: timm's, which are the names here but for a few, the authors', Hugging
Face's and big_vision's.
"""

from vitlab.weights.names import vit_flax, vit_hugging_face
from vitlab.weights.rules import Axes, ClassLast, NameMap, Part, Rule, Share, Summand, Tokens

# Parts of pre-training, towers of text, and constants.
LEFTOVERS = (
    r"^mask_token$",
    r"^(module\.)?(decoder|predictor|momentum_encoder|dino_head|ibot_head|projectors?|lm_head|local_cls_norm)[._]",
    r"^(text|txt|token_embedding|ln_final|logit_scale|logit_bias|text_projection)(\.|$)",
    r"(^|\.)rope(_embed)?\.",
    r"relative_position_index$",
    r"\.bias_mask$",
)
_TEXT = (r"^transformer\.", r"^positional_embedding$")  # a text tower whose names have no prefix

_COMMON = (
    Rule("^patch_embed.norm.", "^patch_norm."),
    Rule(".attn.relative_position_bias_table$", ".rel_pos.table$", ClassLast()),
)
_GAMMA = Rule(".gamma_{i}$", ".ls{i}.gamma$")
_ZEROS = r"\.attn\.[qv]_bias$"  # DINOv3 in timm with and without
_EVA = (  # queries, keys and values apart
    *(Rule(f".attn.{part}_proj.weight$", ".attn.qkv.weight$", Part(i, 3)) for i, part in enumerate("qkv")),
    Rule(".attn.{x:q|v}_proj.bias$", ".attn.{x}_bias$"),
)
_DINO = (
    Rule("^blocks.{i}.{j}.", "^blocks.{j}."),  # names of training files, in which blocks lie in chunks
    Rule(".mlp.w12.", ".mlp.fc1."),
)
TIMM = (
    # BEiT, and DINOv3, which has registers and no table of positions.
    NameMap(
        source="timm",
        rules=(*_COMMON, _GAMMA),
        ignored=LEFTOVERS,
        suits=r"\.rel_pos\.table$|\A(?![\s\S]*^pos_embed$)(?=[\s\S]*^reg_token$)",
        zeros=_ZEROS,
    ),
    NameMap(source="timm", rules=(*_COMMON, *_EVA), ignored=LEFTOVERS, suits=r"\.mlp\.norm\."),  # EVA-02 B and L
    NameMap(source="timm", rules=_COMMON, ignored=LEFTOVERS),
)
AUTHORS = (
    NameMap(  # OpenCLIP around a trunk of timm's
        source="mlfoundations/open_clip, timm",
        rules=(*_COMMON, *_EVA, Rule("^visual.head.proj.", "^head.")),
        ignored=(*_TEXT, *LEFTOVERS),
    ),
    NameMap(
        source="baaivision/EVA",
        rules=(
            *_COMMON,
            *_EVA,
            Rule(".attn.inner_attn_ln.", ".attn.norm."),
            Rule(".mlp.ffn_ln.", ".mlp.norm."),
            Rule(".mlp.w1.", ".mlp.fc1_g."),
            Rule(".mlp.w2.", ".mlp.fc1_x."),
            Rule(".mlp.w3.", ".mlp.fc2."),
        ),
        ignored=LEFTOVERS,
    ),
    NameMap(source="facebookresearch/dinov2", rules=(*_DINO, Rule(".mlp.w3.", ".mlp.fc2.")), ignored=LEFTOVERS),
    NameMap(  # the position of the class token is added to it: what follows them is the same
        source="facebookresearch/dinov2 with registers",
        rules=(
            *_DINO,
            Rule(".mlp.w3.", ".mlp.fc2."),
            Rule("^register_tokens$", "^reg_token$"),
            Rule("^pos_embed$", "^pos_embed$", Tokens(1, None)),
        ),
        copies=(Rule("^pos_embed$", "^cls_token$", Summand(0, 1)),),
        ignored=LEFTOVERS,
    ),
    NameMap(  # the bias of keys is masked
        source="facebookresearch/dinov3",
        rules=(
            Rule("^storage_tokens$", "^reg_token$"),
            Rule(".attn.qkv.bias$", ".attn.q_bias$", Share(0, 1, 3)),
            Rule(".mlp.w1.", ".mlp.fc1_g."),
            Rule(".mlp.w2.", ".mlp.fc1_x."),
            Rule(".mlp.w3.", ".mlp.fc2."),
        ),
        copies=(Rule(".attn.qkv.bias$", ".attn.v_bias$", Share(2, 3, 3)),),
        ignored=LEFTOVERS,
        zeros=_ZEROS,
    ),
)


def _openai(prefix: str, ignored: tuple[str, ...]) -> NameMap:
    """The names of OpenAI's CLIP and OpenCLIP, and of PE core, whose file has the image tower under
    `prefix`.
    """
    pool = f"^{prefix}attn_pool."
    return NameMap(
        source="openai/CLIP",
        rules=(
            Rule(f"^{prefix}class_embedding$", "^cls_token$", Axes("d", "11d")),
            Rule(f"^{prefix}positional_embedding$", "^pos_embed$", Axes("nd", "1nd")),
            Rule(f"^{prefix}conv1.", "^patch_embed.proj."),
            Rule(f"^{prefix}ln_pre.", "^norm_pre."),
            Rule(f"^{prefix}ln_post.", "^norm."),
            Rule(f"^{prefix}proj$", "^head.weight$", Axes("io", "oi")),
            Rule(f"{pool}probe$", "^attn_pool.latent$"),
            Rule(f"{pool}attn.in_proj_{{x:weight|bias}}$", "^attn_pool.q.{x}$", Share(0, 1, 3)),
            Rule(f"{pool}attn.out_proj.", "^attn_pool.proj."),
            Rule(f"{pool}layernorm.", "^attn_pool.norm."),
            Rule(f"{pool}mlp.", "^attn_pool.mlp."),
            Rule(f"^{prefix}transformer.resblocks.{{i}}.", "^blocks.{i}."),
            Rule(".ln_{i}.", ".norm{i}."),
            Rule(".ls_{i}.gamma$", ".ls{i}.gamma$"),
            Rule(".attn.in_proj_{x:weight|bias}$", ".attn.qkv.{x}$"),
            Rule(".attn.out_proj.", ".attn.proj."),
            Rule(".mlp.c_fc.", ".mlp.fc1."),
            Rule(".mlp.c_proj.", ".mlp.fc2."),
        ),
        copies=(Rule(f"{pool}attn.in_proj_{{x:weight|bias}}$", "^attn_pool.kv.{x}$", Share(1, 3, 3)),),
        ignored=(*ignored, *LEFTOVERS),
    )


# Apple's AIMv2: the gate is fc1, the value fc3.
_APPLE = NameMap(
    source="apple/ml-aim",
    rules=(
        Rule("^preprocessor.patchifier.proj.", "^patch_embed.proj."),
        Rule("^preprocessor.patchifier.norm.", "^patch_norm."),
        Rule("^preprocessor.pos_embed$", "^pos_embed$"),
        Rule("^trunk.post_trunk_norm.", "^norm."),
        Rule("^post_trunk_norm.", "^norm."),
        Rule("^trunk.blocks.", "^blocks."),
        Rule(".norm_{i}.", ".norm{i}."),
        Rule(".mlp.fc1.", ".mlp.fc1_g."),
        Rule(".mlp.fc3.", ".mlp.fc1_x."),
    ),
    ignored=LEFTOVERS,
)
MAPS = (
    *TIMM,
    *AUTHORS,
    _openai("visual.", _TEXT),
    _openai("", ()),
    _APPLE,
    *vit_hugging_face.maps(LEFTOVERS),
    *vit_flax.maps(LEFTOVERS),
)

"""Names of Hugging Face's transformers for plain trunks: queries, keys and values have tensors of
their own.
"""

from vitlab.weights.rules import Axes, ClassLast, NameMap, Part, Rule, Share, Summand, Tokens

_EMBEDDINGS = (
    Rule("^embeddings.cls_token$", "^cls_token$"),
    Rule("^embeddings.distillation_token$", "^dist_token$"),
    Rule("^embeddings.position_embeddings$", "^pos_embed$"),
    Rule("^embeddings.patch_embeddings.projection.", "^patch_embed.proj."),
)
_REGISTERS = Rule("^embeddings.register_tokens$", "^reg_token$")
_LAYER_SCALE = Rule(".layer_scale{i}.lambda1$", ".ls{i}.gamma$")


def _joined(*templates: str, leaf: str = "{x:weight|bias}") -> tuple[Rule, ...]:
    """Rules for the three templates of query, key and value."""
    here = leaf.replace(":weight|bias", "")
    return tuple(Rule(f"{name}.{leaf}$", f".attn.qkv.{here}$", Part(i, 3)) for i, name in enumerate(templates))


_QKV = tuple(f".attention.attention.{name}" for name in ("query", "key", "value"))
_LAYER = (  # ViT, DeiT, BEiT, I-JEPA, DINOv2
    Rule("^encoder.layer.{i}.", "^blocks.{i}."),
    Rule(".attention.output.dense.", ".attn.proj."),
    Rule(".layernorm_before.", ".norm1."),
    Rule(".layernorm_after.", ".norm2."),
    Rule(".intermediate.dense.", ".mlp.fc1."),
    Rule(".output.dense.", ".mlp.fc2."),
    Rule(".mlp.weights_in.", ".mlp.fc1."),
    Rule(".mlp.weights_out.", ".mlp.fc2."),
    _LAYER_SCALE,
    Rule("^layernorm.", "^norm."),
    Rule("^{x:classifier|cls_classifier}.", "^head."),
    Rule("^distillation_classifier.", "^head_dist."),
)
_IGNORED = (r"relative_position_index$", r"^embeddings\.mask_token$", r"^pooler\.dense\.", r"position_ids$", r"^text_model\.")
_BIAS = Rule(".attention.{x:q|v}_proj.bias$", ".attn.{x}_bias$")
_DINOV3 = (
    _EMBEDDINGS[0],
    _REGISTERS,
    Rule("^embeddings.patch_embeddings.", "^patch_embed.proj."),
    Rule("^layer.{i}.", "^blocks.{i}."),
    *_joined(*(f".attention.{name}_proj" for name in "qkv"), leaf="weight"),
    _BIAS,
    Rule(".attention.o_proj.", ".attn.proj."),
    Rule(".mlp.down_proj.", ".mlp.fc2."),
    _LAYER_SCALE,
)


def maps(leftovers: tuple[str, ...]) -> tuple[NameMap, ...]:
    """The maps, which ignore `leftovers` beside what Hugging Face alone has."""
    source, ignored = "huggingface/transformers", (*_IGNORED, *leftovers)
    return (
        NameMap(source=source, rules=(*_EMBEDDINGS, *_joined(*_QKV), *_LAYER), ignored=ignored),
        NameMap(  # the position of the class token is added to it, as for the authors' file
            source=f"{source}, DINOv2 with registers",
            rules=(
                Rule("^embeddings.position_embeddings$", "^pos_embed$", Tokens(1, None)),
                _REGISTERS,
                *_EMBEDDINGS,
                *_joined(*_QKV),
                *_LAYER,
            ),
            copies=(Rule("^embeddings.position_embeddings$", "^cls_token$", Summand(0, 1)),),
            ignored=ignored,
        ),
        NameMap(
            source=f"{source}, BEiT",
            rules=(
                *_EMBEDDINGS,
                *_joined(*_QKV, leaf="weight"),
                Rule(".attention.attention.query.bias$", ".attn.q_bias$"),
                Rule(".attention.attention.value.bias$", ".attn.v_bias$"),
                Rule(".attention.attention.relative_position_bias.relative_position_bias_table$", ".rel_pos.table$", ClassLast()),
                *_LAYER,
                Rule(".lambda_{i}$", ".ls{i}.gamma$"),
                Rule("^pooler.layernorm.", "^fc_norm."),
            ),
            ignored=ignored,
        ),
        NameMap(
            source=f"{source}, DINOv3", rules=(*_DINOV3, Rule(".mlp.up_proj.", ".mlp.fc1.")), ignored=ignored, zeros=r"\.attn\.[qv]_bias$"
        ),
        NameMap(
            source=f"{source}, DINOv3",
            rules=(*_DINOV3, Rule(".mlp.up_proj.", ".mlp.fc1_x."), Rule(".mlp.gate_proj.", ".mlp.fc1_g.")),
            ignored=ignored,
            zeros=r"\.attn\.[qv]_bias$",
        ),
        NameMap(
            source=f"{source}, CLIP and SigLIP",
            rules=(
                Rule("^embeddings.class_embedding$", "^cls_token$", Axes("d", "11d")),
                Rule("^embeddings.position_embedding.weight$", "^pos_embed$", Axes("nd", "1nd")),
                Rule("^embeddings.patch_embedding.", "^patch_embed.proj."),
                Rule("^pre_layrnorm.", "^norm_pre."),
                Rule("^post_layernorm.", "^norm."),
                Rule("^visual_projection.", "^head."),
                Rule("^head.probe$", "^attn_pool.latent$"),
                Rule("^head.attention.in_proj_{x:weight|bias}$", "^attn_pool.q.{x}$", Share(0, 1, 3)),
                Rule("^head.attention.out_proj.", "^attn_pool.proj."),
                Rule("^head.layernorm.", "^attn_pool.norm."),
                Rule("^head.mlp.", "^attn_pool.mlp."),
                Rule("^encoder.layers.{i}.", "^blocks.{i}."),
                *_joined(*(f".self_attn.{name}_proj" for name in "qkv")),
                Rule(".self_attn.out_proj.", ".attn.proj."),
                Rule(".layer_norm{i}.", ".norm{i}."),
            ),
            copies=(Rule("^head.attention.in_proj_{x:weight|bias}$", "^attn_pool.kv.{x}$", Share(1, 3, 3)),),
            ignored=ignored,
        ),
        NameMap(
            source=f"{source}, AIMv2",
            rules=(
                Rule("^embeddings.patch_embed.", "^patch_embed.proj."),
                Rule("^embeddings.rms_norm.", "^patch_norm."),
                Rule("^embeddings.position_embedding.weight$", "^pos_embed$", Axes("nd", "1nd")),
                Rule("^encoder.layers.{i}.", "^blocks.{i}."),
                Rule(".rms_norm{i}.", ".norm{i}."),
                *_joined(*(f".attention.{name}_proj" for name in "qkv"), leaf="weight"),
                Rule(".attention.out_proj.", ".attn.proj."),
                Rule(".ffn.gate_proj.", ".mlp.fc1_g."),
                Rule(".ffn.up_proj.", ".mlp.fc1_x."),
                Rule(".ffn.down_proj.", ".mlp.fc2."),
                Rule("^rms_norm.", "^norm."),
            ),
            ignored=(*ignored, r"^head\."),  # the attention pool that was trained with it, which AIMv2's trunk is published without
        ),
    )

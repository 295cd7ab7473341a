"""Files of plain trunks whose tensors are not one to one: parts, shares, sums, stacks, and what is
not there.
"""

import numpy as np
import pytest
from flax import nnx

from vitlab import create_model, load_weights
from vitlab.weights.load import WeightsMismatchError, parameters
from vitlab.weights.save import to_foreign

FIELDS = {"dim": 16, "depth": 2, "num_heads": 2, "image_size": 32, "mlp_dim": 24}


def make(name, seed=0, **fields):
    return create_model(name, rngs=nnx.Rngs(seed), **(FIELDS | fields))


def values(model):
    return {name: np.asarray(value[...]) for name, value in parameters(model).items()}


def equal(model, source):
    for name, value in values(source).items():
        np.testing.assert_array_equal(values(model)[name], value, err_msg=name)


def clip_names(tensors):
    """timm's names as OpenCLIP has them, beside a text tower whose blocks are called alike."""
    words = {".attn.qkv.weight": ".attn.in_proj_weight", ".attn.qkv.bias": ".attn.in_proj_bias", ".attn.proj.": ".attn.out_proj."}
    words |= {".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.", ".norm1.": ".ln_1.", ".norm2.": ".ln_2."}
    out = {"transformer.resblocks.0.ln_1.weight": np.zeros(3, np.float32), "positional_embedding": np.zeros((77, 3), np.float32)}
    out |= {"token_embedding.weight": np.zeros((5, 3), np.float32), "logit_scale": np.zeros((), np.float32)}
    top = {"cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj.weight": "conv1.weight"}
    for name, value in tensors.items():
        for old, new in words.items():
            name = name.replace(old, new)
        name = name.replace("norm_pre", "ln_pre").replace("blocks.", "transformer.resblocks.")
        name = f"ln_post.{name[5:]}" if name.startswith("norm.") else name
        value = value[0, 0] if name == "cls_token" else value[0] if name == "pos_embed" else value
        name, value = ("proj", value.T) if name == "head.weight" else (top.get(name, name), value)
        out[f"visual.{name}"] = np.ascontiguousarray(value)
    return out


def test_openais_names_are_read_beside_their_text_tower():
    source, model = make("clip_base_patch16", 3, num_classes=5), make("clip_base_patch16", num_classes=5)
    report = load_weights(model, clip_names(to_foreign(source)))
    assert report.name_map == "openai/CLIP" and len(report.ignored) == 4
    equal(model, source)


def big_vision_names(tensors, heads=2):
    """timm's names as big_vision has them, the blocks stacked."""

    def to_heads(weight, bias):
        return {"kernel": weight.T.reshape(weight.shape[1], heads, -1), "bias": bias.reshape(heads, -1)}

    def attention(get):
        qkv = zip(("query", "key", "value"), np.split(get("qkv.weight"), 3), np.split(get("qkv.bias"), 3), strict=True)
        out = {f"{n}/{leaf}": v for n, w, b in qkv for leaf, v in to_heads(w, b).items()}
        return out | {"out/kernel": get("proj.weight").T.reshape(heads, -1, len(get("proj.bias"))), "out/bias": get("proj.bias")}

    def block(get):
        out = {f"MultiHeadDotProductAttention_0/{n}": v for n, v in attention(lambda n: get(f"attn.{n}")).items()}
        for i in (1, 2):
            out[f"LayerNorm_{i - 1}/scale"], out[f"LayerNorm_{i - 1}/bias"] = get(f"norm{i}.weight"), get(f"norm{i}.bias")
            out[f"MlpBlock_0/Dense_{i - 1}/kernel"], out[f"MlpBlock_0/Dense_{i - 1}/bias"] = (
                get(f"mlp.fc{i}.weight").T,
                get(f"mlp.fc{i}.bias"),
            )
        return out

    def pool(n):
        if n.startswith("qkv."):
            return np.concatenate((tensors[f"attn_pool.q.{n[4:]}"], tensors[f"attn_pool.kv.{n[4:]}"]))
        return tensors[f"attn_pool.{n}"]

    blocks = [block(lambda n, i=i: tensors[f"blocks.{i}.{n}"]) for i in range(2)]
    out = {f"Transformer/encoderblock/{n}": np.stack([b[n] for b in blocks]) for n in blocks[0]}
    out |= {f"MAPHead_0/MultiHeadDotProductAttention_0/{n}": v for n, v in attention(pool).items()}
    out |= {"MAPHead_0/probe": tensors["attn_pool.latent"], "MAPHead_0/LayerNorm_0/scale": tensors["attn_pool.norm.weight"]}
    out["MAPHead_0/LayerNorm_0/bias"] = tensors["attn_pool.norm.bias"]
    for i in (1, 2):
        out[f"MAPHead_0/MlpBlock_0/Dense_{i - 1}/kernel"] = tensors[f"attn_pool.mlp.fc{i}.weight"].T
        out[f"MAPHead_0/MlpBlock_0/Dense_{i - 1}/bias"] = tensors[f"attn_pool.mlp.fc{i}.bias"]
    out |= {"Transformer/encoder_norm/scale": tensors["norm.weight"], "Transformer/encoder_norm/bias": tensors["norm.bias"]}
    out |= {
        "embedding/kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": tensors["patch_embed.proj.bias"],
    }
    out["pos_embedding"] = tensors["pos_embed"]
    return {f"params/img/{n}": v for n, v in out.items()} | {"params/txt/a": np.zeros(2, np.float32), "params/t": np.zeros((), np.float32)}


def test_big_visions_tree_of_stacked_blocks_is_read():
    source, model = make("siglip_base_patch16", 3), make("siglip_base_patch16")
    report = load_weights(model, big_vision_names(to_foreign(source)))
    assert report.ignored == ("params.txt.a", "params.t")
    equal(model, source)


def hugging_face(part_names=("query", "key", "value")):
    source = make("vit_tiny_patch16", 3, num_classes=5)
    tensors = {}
    for name, value in to_foreign(source).items():
        if ".attn.qkv." in name:
            for part, one in zip(part_names, np.split(value, 3), strict=True):
                tensors[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = one
        else:
            tensors[name.replace(".attn.proj.", ".attention.output.dense.")] = value
    words = {
        "blocks.": "vit.encoder.layer.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".mlp.fc1.": ".intermediate.dense.",
    }
    words |= {".mlp.fc2.": ".output.dense.", "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"}
    words |= {"patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.", "head.": "classifier."}

    def renamed(name):
        for old, new in words.items():
            name = name.replace(old, new)
        return f"vit.layernorm.{name[5:]}" if name.startswith("norm.") else name

    return source, {renamed(name): value for name, value in tensors.items()}


def test_parts_are_joined_and_a_part_that_is_missing_is_named():
    source, tensors = hugging_face()
    model = make("vit_tiny_patch16", num_classes=5)
    report = load_weights(model, tensors | {"vit.pooler.dense.weight": np.zeros((16, 16), np.float32)})
    assert report.prefixes == ("vit.",) and report.ignored == ("vit.pooler.dense.weight",)
    equal(model, source)
    lost = {n: v for n, v in tensors.items() if n != "vit.encoder.layer.1.attention.attention.key.weight"}
    with pytest.raises(WeightsMismatchError, match=r"blocks.1.attn.qkv.kernel: 2 of 3 parts: .*query.weight"):
        load_weights(make("vit_tiny_patch16", num_classes=5), lost)
    for head in ("new", "fit"):
        with pytest.raises(WeightsMismatchError, match="2 of 3 parts"):
            load_weights(make("vit_tiny_patch16", num_classes=7), lost, head=head)
    assert set(load_weights(make("vit_tiny_patch16", num_classes=7), tensors, head="new").new_head) == {"head.kernel", "head.bias"}


def test_the_class_position_of_dinov2_with_registers_goes_into_the_class_token():
    fields = {"image_size": 42, "pos_grid": (3, 3)}
    source, model = (make("dinov2_small_reg4_patch14", seed, **fields) for seed in (3, 0))
    timm = to_foreign(source)
    official = {n.replace("reg_token", "register_tokens"): v for n, v in timm.items()}
    position = np.full((1, 1, 16), 0.5, np.float32)
    official |= {"pos_embed": np.concatenate((position, timm["pos_embed"]), 1), "cls_token": timm["cls_token"] - position}
    official["mask_token"] = np.zeros((1, 16), np.float32)
    report = load_weights(model, official)
    assert report.name_map == "facebookresearch/dinov2 with registers" and report.ignored == ("mask_token",)
    np.testing.assert_allclose(values(model)["cls_token"], values(source)["cls_token"], atol=1e-6)  # a sum of float32
    np.testing.assert_array_equal(values(model)["pos_embed"], values(source)["pos_embed"])
    load_weights(model, timm)
    equal(model, source)


def test_the_masked_bias_of_dinov3s_keys_is_left_out_and_a_network_without_biases_has_zeros():
    source, model = (make("dinov3_small_patch16", seed) for seed in (3, 0))
    for block in source.blocks:
        block.attn.q_bias[...] += 1.0
        block.attn.v_bias[...] += 2.0
    official = {}
    for name, value in to_foreign(source).items():
        name = name.replace("reg_token", "storage_tokens").replace(".gamma_", ".ls")
        name = f"{name}.gamma" if name[-4:-1] == ".ls" else name
        if name.endswith("attn.q_bias"):
            key = np.full(16, np.nan, np.float32)  # whatever is masked
            official[name.replace("q_bias", "qkv.bias")] = np.concatenate((value, key, value + 1))
        elif not name.endswith("attn.v_bias"):
            official[name] = value
    report = load_weights(model, official | {"rope_embed.periods": np.ones(4, np.float32)})
    assert report.name_map == "facebookresearch/dinov3" and not report.zeros
    equal(model, source)
    bare = {n: v for n, v in to_foreign(source).items() if not n.endswith(("q_bias", "v_bias"))}
    report = load_weights(model, bare)
    assert len(report.zeros) == 4 and not np.any(values(model)["blocks.0.attn.q_bias"])
    some = {n: v for n, v in to_foreign(source).items() if n != "blocks.1.attn.q_bias"}
    with pytest.raises(WeightsMismatchError, match=r"missing: blocks.1.attn.q_bias"):
        load_weights(model, some)


def test_a_bias_of_zeros_is_passed_over_where_there_is_none_here():
    source = make("openclip_base_patch16", 3, num_classes=5)
    tensors = to_foreign(source) | {"head.bias": np.zeros(5, np.float32)}
    assert load_weights(make("openclip_base_patch16", num_classes=5), tensors).ignored == ("head.bias",)
    with pytest.raises(WeightsMismatchError, match="unexpected: head.bias"):
        load_weights(make("openclip_base_patch16", num_classes=5), tensors | {"head.bias": np.ones(5, np.float32)})


def test_leftovers_of_pre_training_are_passed_over_by_name():
    source, model = make("mae_base_patch16", 3), make("mae_base_patch16")
    extra = {n: np.zeros(2, np.float32) for n in ("mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight", "decoder_pred.bias")}
    assert set(load_weights(model, to_foreign(source) | extra).ignored) == set(extra)
    equal(model, source)
    moco = {f"module.base_encoder.{n}": v for n, v in to_foreign(source).items()} | {"module.momentum_encoder.norm.bias": np.zeros(16)}
    assert load_weights(model, moco).prefixes == ("module.base_encoder.",)


def test_positions_are_resized_by_the_rule_of_the_variant_when_loading_as_when_running():
    fields = {"image_size": 70, "num_classes": 0}
    source = make("dinov2_small_patch14", 3, pos_grid=(7, 7), **fields)
    source.pos_embed[...] *= 50.0  # positions of size one, as trained ones
    tensors = to_foreign(source)
    running, loaded = make("dinov2_small_patch14", pos_grid=(7, 7), **fields), make("dinov2_small_patch14", pos_grid=None, **fields)
    assert not load_weights(running, tensors).rules
    rule = load_weights(loaded, tensors).rules["pos_embed"]
    assert rule.startswith("7 x 7 to 5 x 5 positions, bicubic without antialiasing, scale (new + 0.1) / old")
    x = np.random.default_rng(0).standard_normal((1, 70, 70, 3)).astype(np.float32)
    first, second = (np.asarray(model.features(x)[-1]) for model in (running, loaded))
    np.testing.assert_allclose(first, second, atol=1e-5)  # both are the same sums
    other = make("dinov2_small_patch14", pos_grid=None, pos_resize="antialias", **fields)
    load_weights(other, tensors)
    assert np.abs(np.asarray(other.features(x)[-1]) - first).max() > 1e-2

"""Decay, depth and Muon for every parameter of every family, against rules written here, by name.

The rules are the authors' (`no_weight_decay`, `no_weight_decay_keywords` and the optimizer of their
code), who never decay vectors and biases. One rule is added: tables of positions and tokens decay
in no family. Some authors' lists forget their own tables.
"""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from vitlab.config import OptimizerConfig
from vitlab.functional import functional
from vitlab.models.registry import abstract_model, family_of, list_models
from vitlab.train.groups import groups_of
from vitlab.tree import leaf_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Regexes of names, matched from the start of the name."""

    variants: tuple[str, ...]  # variants that together have every parameter of the family
    source: str  # source of the rule for weight decay
    kept: str = "$"  # parameters of two or more dimensions that do not decay
    embeds: str  # parameters of depth 0
    blocks: str  # blocks in the order of the regex's groups, numbers in natural order, missing groups last
    after: str  # parameters deeper than all blocks, in the norm's and the head's group
    joins: tuple[tuple[str, str], ...] = ()  # other parameters -> the start of a name of equal depth


TIMM = "timm optim/_param_groups.py: one dimension or none, and biases; the authors' code has no list"
TOKENS = "cls_token, pos_embed (and dist_token)"
SWIN = "absolute_pos_embed; keyword relative_position_bias_table"
AGENTS = "; not the tables of agents, which are tables of positions all the same"
STAGED = r"stages/(\d+)/blocks/(\d+)/"
LAYERED = r"layers/(\d+)/blocks/(\d+)/"
TABLES = r".*/(an|na|ah|ha|aw|wa|ac|ca)_bias$"
PVT = "cls_token ('has pos_embed may be better', says its comment), as in PVT v1; pos_embed1 to 4 in PVT v2 and its heirs"

RULES = {
    "agent_deit": Rules(
        variants=("agent_deit_tiny",), source=f"{TOKENS}{AGENTS}", kept=f"embed/(cls_token|pos_embed)$|{TABLES}", embeds="embed/",
        blocks=r"blocks/(\d+)/", after="(norm|head)/",
    ),
    "agent_pvt": Rules(
        variants=("agent_pvt_tiny",), source=f"{PVT}{AGENTS}", kept=f"{TABLES}|.*/pos_map$", embeds="stages/0/embed/", blocks=STAGED,
        after="head/",
    ),
    "agent_swin": Rules(
        variants=("agent_swin_tiny",), source=f"{SWIN}{AGENTS}", kept=rf"{TABLES}|.*/rel_pos_bias$", embeds="patch_embed/",
        blocks=LAYERED, after="(norm|head)/",
    ),
    "biformer": Rules(
        variants=("biformer_tiny",), source=f"{TOKENS}, of which it has none", embeds="stages/0/downsample/", blocks=STAGED,
        after="(norm|head)/",
    ),
    "coatnet": Rules(
        variants=("coatnet_0",), source="timm: relative_position_bias_table", kept=".*/rel_pos_bias$", embeds="stem/", blocks=STAGED,
        after="(norm|head)/",
    ),
    "convnext": Rules(
        variants=("convnext_atto", "convnextv2_atto"), source="an empty list", embeds="stages/0/downsample/", blocks=STAGED,
        after="(norm|head)/",
    ),
    "crossformer": Rules(
        variants=("crossformer_tiny", "crossformer_pp_small"), source=f"{SWIN}; not the MLP of the dynamic position bias",
        embeds="(patch_embed|embed_norm)/", blocks=LAYERED, after="(norm|head)/",
    ),
    "crossvit": Rules(
        variants=("crossvit_9", "crossvit_9_dagger"), source="cls_token, pos_embed of each branch (timm: cls_token_0, pos_embed_0, ...)",
        kept=r"embeddings/\d/(cls_token|pos_embed)$", embeds="embeddings/", blocks=r"encoders/(\d)/blocks/\d/(\d)/",
        after="(norms|head)/", joins=tuple((f"encoders/{i}/fusions/", f"encoders/{i}/blocks/1/2/") for i in range(3)),
    ),
    "cswin": Rules(
        variants=("cswin_tiny", "agent_cswin_tiny", "inline_cswin_tiny"), source=f"{TOKENS}, of which it has none{AGENTS}", kept=TABLES,
        embeds="stages/0/(conv|norm)/", blocks=STAGED, after="(norm|head)/",
    ),
    "davit": Rules(variants=("davit_tiny",), source=TIMM, embeds="stem/", blocks=STAGED, after="(norm|head)/"),
    "dcal": Rules(
        variants=("dcal_deit_tiny",), source=f"{TOKENS}, as DeiT", kept="embed/(cls_token|pos_embed)$", embeds="embed/",
        blocks=r"blocks/(\d+)/", after="(norm|head|aux_head|glca|glca_norm2?|glca_mlp)/",
    ),
    "dependencyvit": Rules(
        variants=("dependencyvit_tiny",), source=f"{TOKENS}, as DeiT", kept="pos_embed$", embeds="(patch_embed/|pos_embed$)",
        blocks=r"blocks/(\d+)/", after="(norm|head)/",
    ),
    "dynperceiver": Rules(
        variants=("dynperceiver_mbv3_05_t128",), source=f"{TIMM}; the latents and the additions to keys are tokens and positions",
        kept=r"latent$|.*/relative_position_bias$", embeds="stem/|latent$", blocks=STAGED, after="(last_write|head)/",
    ),
    "efficientvit": Rules(
        variants=("efficientvit_m0",), source="all of attention_biases", kept=".*/attention_biases$", embeds="patch_embed/",
        blocks=STAGED, after="(norm|head)/",
    ),
    "evit": Rules(
        variants=("evit_deit_tiny_k07",), source=TOKENS, kept="embed/(cls_token|pos_embed)$", embeds="embed/", blocks=r"blocks/(\d+)/",
        after="(norm|head)/",
    ),
    "fmvit": Rules(variants=("fmvit_tiny",), source=TIMM, embeds="stem/", blocks=STAGED, after="(norm|head)/"),
    "focalnet": Rules(
        variants=("focalnet_tiny_srf", "focalnet_huge_fl3"), source="an empty list", embeds="stem/", blocks=LAYERED, after="(norm|head)/"
    ),
    "glnet": Rules(
        variants=("glnet_stl", "glnet_stl_paramslot"), source=f"{TOKENS}, of which it has none; its slots decay",
        embeds="stages/0/downsample/", blocks=STAGED, after="(norm|head)/",
    ),
    "halonet": Rules(
        variants=("halonet_h0", "halonet_h3"), source=f"{TIMM}; height_rel and width_rel are tables of positions",
        kept=".*/(height|width)_rel$", embeds="stem/", blocks=STAGED, after="(final_conv|head)/",
    ),
    "halonet_resnet": Rules(
        variants=("halonet26t",), source=f"{TIMM}; height_rel and width_rel are tables of positions", kept=".*/(height|width)_rel$",
        embeds="stem/", blocks=STAGED, after="head/",
    ),
    "illama": Rules(
        variants=("illama_tiny",), source=TOKENS, kept="embed/(cls_token|pos_embed)$", embeds="embed/", blocks=r"blocks/(\d+)/",
        after="(norm|head)/",
    ),
    "hiera": Rules(
        variants=("hiera_tiny", "hiera_small_abswin"), source="pos_embed (and pos_embed_win)", kept="(pos|unit)_embed$",
        embeds=r"patch_embed/|(pos|unit)_embed$", blocks=r"blocks/(\d+)/", after="(norm|head)/",
    ),
    "inline_deit": Rules(
        variants=("inline_deit_tiny",), source=TOKENS, kept="embed/(cls_token|pos_embed)$", embeds="embed/", blocks=r"blocks/(\d+)/",
        after="(norm|head)/",
    ),
    "inline_pvt": Rules(
        variants=("inline_pvt_tiny",), source=PVT, kept=".*/pos_map$", embeds="stages/0/embed/", blocks=STAGED, after="head/"
    ),
    "inline_swin": Rules(
        variants=("inline_swin_tiny",), source=SWIN, kept=".*/rel_pos_bias$", embeds="patch_embed/", blocks=LAYERED, after="(norm|head)/"
    ),
    "litv2": Rules(variants=("litv2_small",), source=SWIN, embeds="patch_embed/", blocks=LAYERED, after="(norm|head)/"),
    "mambaout": Rules(variants=("mambaout_femto",), source=TIMM, embeds="stem/", blocks=STAGED, after="(norm|head)/"),
    "maxvit": Rules(
        variants=("maxvit_tiny",), source="timm: relative_position_bias_table, rel_pos.mlp", kept=".*/rel_pos_bias$", embeds="stem/",
        blocks=STAGED, after="(norm|head)/",
    ),
    "metaformer": Rules(
        variants=("metaformer_nano", "metaformer_s12"), source="ours; the mixer's authors", kept=".*/rel_pos_bias$",
        embeds="stages/0/(downsample|norm)/", blocks=STAGED, after="(norm|head)/",
    ),
    "mhsvm": Rules(
        variants=("mhsvm_h4",), source="absolute_pos_embed, of which it has none; _no_weight_decay of A_logs and Ds",
        kept=r".*/heads/\d+/(a_log|skip|dt_bias)$", embeds="patch_embed/",
        blocks=r"stages/(\d+)/blocks/(\d+)/|up_stages/(\d+)/blocks/(\d+)/", after="(final_up|head)/",
    ),
    "morpmamba": Rules(
        variants=("morpmamba_houston",), source="Keras: an l2 penalty on the layer before the classifier alone; here all decay",
        embeds="tokens/", blocks=r"attn/", after="(recurrence|fc|head)/",
    ),
    "nat": Rules(
        variants=("nat_mini", "nat_small", "dinat_tiny", "dinat_isotropic_small"), source="keyword rpb", kept=".*/rpb$",
        embeds="patch_embed/", blocks=r"levels/(\d+)/blocks/(\d+)/", after="(norm|head)/",
    ),
    "nextvit": Rules(variants=("nextvit_small",), source=TIMM, embeds="stem/", blocks=STAGED, after="(norm|head)/"),
    "overlock": Rules(
        variants=("overlock_xt",), source=f"{TIMM}; rpb1 and rpb2 are tables of positions", kept=".*/(small|large)_bias$",
        embeds="base/0/embed/", blocks=r"base/(\d)/blocks/(\d+)/|focus/(\d)/(\d+)/", after="(proj|head)/",
        joins=(("context_proj/", "focus/0/0/"), ("[xh]_down/", "focus/1/0/")),
    ),
    "poolformer": Rules(
        variants=("poolformer_s12",), source="an empty list", embeds="stages/0/downsample/", blocks=STAGED, after="(norm|head)/"
    ),
    "pvt": Rules(
        variants=("pvt_tiny",), source=PVT, kept=".*/(pos_map|pos_tokens)$|cls_token$", embeds="stages/0/embed/", blocks=STAGED,
        after="(norm|head)/|cls_token$",
    ),
    "pvt_v2": Rules(
        variants=("pvt_v2_b0", "pvt_v2_b2_li"), source=PVT, embeds="stages/0/downsample/", blocks=STAGED, after="head/"
    ),
    "path_ensemble": Rules(
        variants=("path_ensemble_deit_tiny",), source=TOKENS, kept="embed/(cls_token|pos_embed)$", embeds="embed/",
        blocks=r"blocks/(\d+)/", after="(norm|head)/",
    ),
    "ravlt": Rules(variants=("ravlt_tiny",), source=SWIN, embeds="patch_embed/", blocks=LAYERED, after="(proj|norm|head)/"),
    "sgformer": Rules(
        variants=("sgformer_small",), source="pos_embed1 to 4 and cls_token, of which it has none; it forgets its own pos_embed",
        kept="stem/pos_map$", embeds="stem/", blocks=STAGED, after="head/",
    ),
    "shvit": Rules(variants=("shvit_s1",), source="timm: an empty list", embeds="patch_embed/", blocks=STAGED, after="(norm|head)/"),
    "smt": Rules(
        variants=("smt_tiny", "smt_large"), source="pos_embed1 to 4 and cls_token, of which it has none",
        embeds="stages/0/(stem|embed_norm)/", blocks=STAGED, after="head/",
    ),
    "sparsifiner": Rules(
        variants=("sparsifiner_small", "sparsifiner_lvvit_small"), source="pos_embed, cls_token; the predictors' tables decay",
        kept="embed/(cls_token|pos_embed)$", embeds="(stem|embed)/", blocks=r"blocks/(\d+)/", after="(norm|head|aux_head)/",
    ),
    "spectformer": Rules(
        variants=("spectformer_tiny", "gfnet_tiny"), source="pos_embed, cls_token; the filters decay", kept="pos_embed$",
        embeds="(patch_embed/|pos_embed$)", blocks=r"blocks/(\d+)/", after="(norm|head)/",
    ),
    "spectformer_h": Rules(
        variants=("spectformerh_small",), source="pos_embed, cls_token, of which it has none; the filters decay", embeds="stem/",
        blocks=rf"{STAGED}|class_block/", after="(norm|head|aux_head)/",
    ),
    "svit": Rules(variants=("svit_small",), source=SWIN, embeds="patch_embed/", blocks=LAYERED, after="(proj|norm|head)/"),
    "swin": Rules(
        variants=("swin_tiny",), source=SWIN, kept=".*/rel_pos_bias$", embeds="patch_embed/", blocks=LAYERED, after="(norm|head)/"
    ),
    "swinv2": Rules(
        variants=("swinv2_tiny_window8_256",), source="absolute_pos_embed; keywords cpb_mlp, logit_scale, relative_position_bias_table",
        kept=r".*/cpb_fc\d/kernel$", embeds="patch_embed/", blocks=LAYERED, after="(norm|head)/",
    ),
    "terminator": Rules(
        variants=("terminator_cifar10",), source="all decays in the author's Kar3; bias_p are tables of positions", kept=".*/bias_p$",
        embeds="blocks/0/", blocks=r"blocks/([1-9]\d*)/", after="head/",
    ),
    "transnext": Rules(
        variants=("transnext_micro", "moh_transnext_base_50"),
        source="keywords query_embedding, relative_pos_bias_local, cpb, temperature",
        kept=r".*/(query_embedding$|relative_pos_bias_local$|cpb_fc\d/kernel$)", embeds="stages/0/patch_embed/", blocks=STAGED,
        after="head/",
    ),
    "van": Rules(
        variants=("van_b0",), source="pos_embed1 to 4 and cls_token, of which it has none", embeds="stages/0/patch_embed/", blocks=STAGED,
        after="head/",
    ),
    "vim": Rules(
        variants=("vim_tiny",), source=f"{TOKENS}; A_log, A_b_log, D and D_b are marked", embeds="embed/", blocks=r"blocks/(\d+)/",
        kept=r"embed/(cls_token|pos_embed)$|.*/scan/(a_log|skip|dt_bias)$", after="(norm|head)/",
    ),
    "vit": Rules(
        variants=("vit_tiny_patch16", "deit_tiny_distilled_patch16", "beit_base_patch16", "pe_core_tiny_patch16_384",
                  "aimv2_large_patch14"),
        source="pos_embed, cls_token, dist_token, reg_token; BEiT: relative_position_bias_table; the latent of a pool is a token",
        kept=r"(cls_token|dist_token|reg_token|pos_embed)$|.*rel_pos/table$|attn_pool/latent$",
        embeds=r"(patch_embed/|patch_norm/|norm_pre/|(cls|dist|reg)_token$|pos_embed$)",
        blocks=r"blocks/(\d+)/", after="(norm|fc_norm|attn_pool|head|head_dist)/",
    ),
    "vmamba": Rules(
        variants=("vmamba_tiny_s1l8",), source="pos_embed, of which it has none; A_logs and Ds are marked, dt_projs_bias is a bias",
        kept=r".*/scan/(a_log|skip|dt_bias)$", embeds="stages/0/downsample/", blocks=STAGED, after="(norm|head)/",
    ),
    "vrwkv": Rules(
        variants=("vrwkv_small",), source="paramwise_cfg of imagenet_bs1024_adamw_swin.py, whose tables it has not", kept="pos_embed$",
        embeds="(patch_embed/|pos_embed$)", blocks=r"blocks/(\d+)/", after="(norm|head)/",
    ),
}  # fmt: skip
FIELDS = {"deit_tiny_distilled_patch16": {"num_registers": 2}}
CASES = [(name, variant) for name, rules in RULES.items() for variant in rules.variants]


@functools.cache
def zoo_model(variant):
    return functional(abstract_model(variant, num_classes=5, **FIELDS.get(variant, {})), family_of(variant).layers)[0]


def expected_depths(rules, names):
    """Returns the depth of each name by the rules alone."""

    def key(match):
        return tuple(math.inf if part is None else int(part) for part in match.groups())

    order = sorted({key(match) for match in map(re.compile(rules.blocks).match, names) if match})

    def depth(name):
        if re.match(rules.embeds, name):
            return 0
        if re.match(rules.after, name):
            return len(order) + 1
        if match := re.match(rules.blocks, name):
            return order.index(key(match)) + 1
        for pattern, like in rules.joins:
            if re.match(pattern, name):
                return depth(like)
        stage = re.match(r"\w+/\d+/", name)  # parameters of a stage outside of its blocks belong to its first block
        assert stage, name
        return min(depth(other) for other in names if other.startswith(f"{stage[0]}blocks/"))

    return [depth(name) for name in names]


def test_every_family_has_rules():
    assert sorted(RULES) == sorted({family_of(name).model.__module__.split(".")[-1] for name in list_models()})
    assert all(family_of(variant).model.__module__.endswith(f".{name}") for name, variant in CASES)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_parameter_decays_lies_and_meets_muon_as_the_rules_say(name, variant):
    rules, model = RULES[name], zoo_model(variant)
    params = model.shapes["params"]
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    groups = groups_of(params, model.places, OptimizerConfig(layer_decay=0.5))
    decays, scales, muon = (dict(zip(names, jax.tree.leaves(tree), strict=True)) for tree in (groups.decays, groups.scales, groups.muon))

    kept = re.compile(rules.kept)
    assert decays == {name: x.ndim > 1 and not kept.match(name) for name, x in zip(names, leaves, strict=True)}
    depths = expected_depths(rules, names)
    assert scales == {name: 0.5 ** (max(depths) - depth) for name, depth in zip(names, depths, strict=True)}
    assert set(depths) == set(range(max(depths) + 1))  # no depth is left out

    ends = re.compile(rf"{rules.embeds}|(aux_)?head(_dist)?/|{rules.kept}")
    matrices = [n.endswith("/kernel") and x.ndim in (2, 4) and min(x.shape[-2:]) > 1 for n, x in zip(names, leaves, strict=True)]
    assert muon == {name: matrix and not ends.match(name) for name, matrix in zip(names, matrices, strict=True)}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_meets_a_parameter(name):
    rules = RULES[name]
    names = [n for variant in rules.variants for n in leaf_names(zoo_model(variant).shapes["params"])]
    patterns = [rules.kept, rules.embeds, rules.blocks, rules.after, *(pattern for pattern, _ in rules.joins)]
    found = {pattern: any(re.match(pattern, n) for n in names) for pattern in patterns if pattern != "$"}
    assert all(found.values()), found


def test_layer_decay_reaches_the_first_layers_of_every_family():
    """The image's embedding has the lowest rate of all, so no large part has the head's."""
    for variant in (rules.variants[0] for rules in RULES.values()):
        model = zoo_model(variant)
        places = jax.tree.leaves(model.places)
        sizes = np.array([x.size for x in jax.tree.leaves(model.shapes["params"])])
        last = np.array([place.depth == max(p.depth for p in places) for place in places])
        head = np.array(["head" in place.roles for place in places])
        assert any(place.depth == 0 for place in places), variant
        if len({place.depth for place in places}) > 3:  # MorpMamba has one block, which holds most of it
            assert sizes[last & ~head].sum() < 0.25 * sizes.sum(), variant

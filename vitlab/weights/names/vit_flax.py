"""Names of the trees of google-research's vision_transformer and big_vision, with "." for "/"."""

from vitlab.weights.rules import Axes, NameMap, Part, Projected, Rule


def dense(foreign: str, here: str) -> tuple[Rule, Rule]:
    """Rules of a linear layer."""
    return Rule(f"{foreign}.kernel$", f"{here}.weight$", Axes("io", "oi")), Rule(f"{foreign}.bias$", f"{here}.bias$")


def _attention(foreign: str, qkv: dict[str, tuple[str, Part | None]], proj: str) -> tuple[Rule, ...]:
    """Rules of an attention layer; `qkv` has for query, key and value the layer here, and the part
    of it.
    """
    rules: list[Rule] = []
    for name, (here, _) in qkv.items():
        rules += [Rule(f"{foreign}.{name}.{leaf}$", f"{here}~{name}.{torch}$", Projected()) for leaf, torch in _LEAVES]
    for name, (here, part) in qkv.items():
        rules += [Rule(f"{here}~{name}.", f"{here}.", part)]
    return (*rules, Rule(f"{foreign}.out.kernel$", f"{proj}.weight$", Projected(out=True)), Rule(f"{foreign}.out.bias$", f"{proj}.bias$"))


_LEAVES = (("kernel", "weight"), ("bias", "bias"))
_POOL = "^MAPHead_0"


def blocks(
    start: str, norm2: str = "LayerNorm_1", attention: str = "MultiHeadDotProductAttention_0", mlp: str = "MlpBlock_0"
) -> tuple[Rule, ...]:
    """Rules of the blocks, whose names begin with `start`."""
    return (
        Rule(f"{start}LayerNorm_0.", "^blocks.{i}.norm1."),
        Rule(f"{start}{norm2}.", "^blocks.{i}.norm2."),
        *_attention(
            f"{start}{attention}",
            {name: ("^blocks.{i}.attn.qkv", Part(i, 3)) for i, name in enumerate(("query", "key", "value"))},
            "^blocks.{i}.attn.proj",
        ),
        *(rule for i in (0, 1) for rule in dense(f"{start}{mlp}.Dense_{i}", f"^blocks.{{i}}.mlp.fc{i + 1}")),
    )


def _map(source: str, norm2: str, attention: str, mlp: str, ignored: tuple[str, ...]) -> NameMap:
    return NameMap(
        source=source,
        rules=(
            Rule("^embedding.kernel$", "^patch_embed.proj.weight$", Axes("hwio", "oihw")),
            Rule("^embedding.bias$", "^patch_embed.proj.bias$"),
            Rule("^cls$", "^cls_token$"),
            Rule("^Transformer.posembed_input.pos_embedding$", "^pos_embed$"),
            Rule("^pos_embedding$", "^pos_embed$"),
            Rule("^Transformer.encoder_norm.", "^norm."),
            *dense("^head", "^head"),
            Rule(f"{_POOL}.probe$", "^attn_pool.latent$"),
            *_attention(
                f"{_POOL}.MultiHeadDotProductAttention_0",
                {"query": ("^attn_pool.q", None), "key": ("^attn_pool.kv", Part(0, 2)), "value": ("^attn_pool.kv", Part(1, 2))},
                "^attn_pool.proj",
            ),
            Rule(f"{_POOL}.LayerNorm_0.", "^attn_pool.norm."),
            *(rule for i in (0, 1) for rule in dense(f"{_POOL}.MlpBlock_0.Dense_{i}", f"^attn_pool.mlp.fc{i + 1}")),
            *blocks("^Transformer.encoderblock_{i}.", norm2, attention, mlp),
        ),
        ignored=ignored,
    )


def maps(leftovers: tuple[str, ...]) -> tuple[NameMap, ...]:
    """The maps, which ignore `leftovers` beside the temperature and bias of big_vision's pairs of
    towers.
    """
    return (
        _map("google-research/vision_transformer", "LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3", leftovers),
        _map("google-research/big_vision", "LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0", (*leftovers, r"^[tb]$")),
    )

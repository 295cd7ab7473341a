"""Names of timm's `hiera_*` and of facebookresearch/hiera's checkpoints."""

from vitlab.weights.rules import Axes, ChannelMap, NameMap, Rule

_COMMON = (
    Rule("^patch_embed.proj.", "^patch_embed."),
    Rule("^pos_embed_win$", "^unit_embed$", Axes("1chw", "1hwc")),
)
_DECODER = (r"^(decoder|mask_token|encoder_norm|multi_scale_fusion)",)
MAPS = (
    NameMap(  # the table of positions is a map of channels here
        source="timm",
        rules=(*_COMMON, Rule("^head.norm.", "^norm."), Rule("^head.fc.", "^head."), Rule("^pos_embed$", "^pos_embed$", ChannelMap())),
        ignored=_DECODER,
        suits=r"^unit_embed$",
    ),
    NameMap(source="timm", rules=(*_COMMON, Rule("^head.norm.", "^norm."), Rule("^head.fc.", "^head.")), ignored=_DECODER),
    NameMap(source="facebookresearch/hiera", rules=(*_COMMON, Rule("^head.projection.", "^head.")), ignored=_DECODER),
)

"""Names of PixDeep/MHS-VM, whose patch merging is at the end of a stage; each head's tensors have
several names there.
"""

from vitlab.weights.names.dvss import scan_rules
from vitlab.weights.rules import NameMap, Rule, pointwise

_HEADS = ("C", "X", "S", "Z")  # snake, diagonal, spiral, raster
_MIXER = ".self_attention."
MAPS = (
    NameMap(
        source="PixDeep/MHS-VM",
        rules=(
            Rule("^vmunet.", "^"),
            *(Rule(f".mhs.scanhead_{name}.scanning.seq2seq_engine.", f".heads.{i}.") for i, name in enumerate(_HEADS)),
            *scan_rules(".heads.{h}."),
            Rule(".heads.{h}.scan.", ".heads.{h}."),
            Rule(f"{_MIXER}mhs.x_ssproj.", f"{_MIXER}to_heads."),
            Rule(f"{_MIXER}mhs.y_proj.", f"{_MIXER}proj."),
            Rule(f"{_MIXER}mhs.cat_norm.", f"{_MIXER}cat_norm."),
            Rule(_MIXER, ".mixer."),
            Rule(".blocks.{j}.ln_1.", ".blocks.{j}.norm."),
            Rule("^layers_up.", "^up_stages."),
            Rule("^layers.", "^stages."),
            Rule("^up_stages.{i}.upsample.", "^up_stages.{i}.resize."),
            Rule("^stages.{i}.downsample.", "^stages.{i+1}.resize."),
            *pointwise("^final_conv"),
            Rule("^final_conv.", "^head."),
        ),
        ignored=(r"\.mambaeng\.", r"\.x_ssproj_W$"),
    ),
)

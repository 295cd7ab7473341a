"""Names of LeapLabTHU/Dynamic_Perceiver's checkpoints, which differ in the convolutional branch and
its classifier.
"""

from vitlab.weights.rules import NameMap, Rule, pointwise

SOURCE = "LeapLabTHU/Dynamic_Perceiver"
_COMMON = (
    Rule("^cnn_stem.0.", "^stem.0.conv."),
    Rule("^cnn_stem.1.", "^stem.0.norm."),
    Rule("_{x:x2z|z2x}.cross_attn.attention.", "_{x}.attn."),
    Rule("_{x:x2z|z2x}.cross_attn.{y:q_norm|kv_norm}.", "_{x}.{y}."),
    Rule("^self_att{i}.{j}.self_attn.attention.", "^self_att{i}.{j}.attn."),
    Rule("^self_att{i}.{j}.self_attn.norm.", "^self_att{i}.{j}.norm1."),
    Rule("^dwc{i+1}_x2z.", "^stages.{i}.dwc."),
    Rule("^cross_att{i+1}_x2z.", "^stages.{i}.read."),
    Rule("^cross_att{i+1}_z2x.", "^stages.{i}.write."),
    Rule("^self_att{i+1}.", "^stages.{i}.blocks."),
    Rule("^last_cross_att_z2x.", "^last_write."),
    Rule(".mlp.layernorm.", ".norm2."),
    Rule("^token_mixer.{i}.0.", "^stages.{i+1}.mix_norm."),
    Rule("^token_mixer.{i}.1.", "^stages.{i+1}.mix."),
    Rule("^token_expander.{i}.0.", "^stages.{i+1}.expand_norm."),
    Rule("^token_expander.{i}.1.", "^stages.{i+1}.expand."),
    Rule("^early_classifier3.", "^head.early."),
    Rule("^classifier_att.", "^head.att."),
    Rule("^isc{i}.0.", "^head.isc{i}."),
    Rule("^isc{i}.1.", "^head.isc{i}_norm."),
    Rule("^classifier_merge.0.", "^head.merge_norm."),
)
_ONE_LAYER = (Rule("^classifier_cnn.", "^head.cnn.fc2."), Rule("^classifier_merge.1.", "^head.merge.fc2."))
MAPS = (
    NameMap(
        source=f"{SOURCE}, RegNet",
        rules=(
            *_COMMON,
            *_ONE_LAYER,
            Rule("^cnn_body.block{i+1}.block{i+1}-{j}.", "^stages.{i}.cnn.{j}."),
            Rule(".f.{x:a|b|c}.0.", ".{x}.conv."),
            Rule(".f.{x:a|b|c}.1.", ".{x}.norm."),
            Rule(".f.se.", ".se."),
            Rule(".proj.0.", ".proj.conv."),
            Rule(".proj.1.", ".proj.norm."),
            *pointwise(".se.fc{k}"),
        ),
        suits=r"\.cnn\.0\.a\.",
    ),
    NameMap(
        source=f"{SOURCE}, ResNet",
        rules=(
            *_COMMON,
            *_ONE_LAYER,
            Rule("^cnn_body_stage{i+1}.", "^stages.{i}.cnn."),
            Rule(".cnn.{j}.conv{k}.", ".cnn.{j}.conv{k}.conv."),
            Rule(".cnn.{j}.bn{k}.", ".cnn.{j}.conv{k}.norm."),
            Rule(".downsample.0.", ".downsample.conv."),
            Rule(".downsample.1.", ".downsample.norm."),
        ),
        suits=r"\.cnn\.0\.conv1\.",
    ),
    NameMap(
        source=f"{SOURCE}, MobileNetV3",
        rules=(
            Rule("^cnn_stem.{j}.block.", "^stem.{j}.block."),
            Rule("^cnn_stem.0.{j}.", "^cnn_stem.{j}."),
            *_COMMON,
            Rule("^cnn_body_stage{i+1}.", "^stages.{i}.cnn."),
            Rule("^stages.3.cnn.2.0.", "^stages.3.cnn.2.conv."),
            Rule("^stages.3.cnn.2.1.", "^stages.3.cnn.2.norm."),
            Rule(".block.{k}.0.", ".block.{k}.conv."),
            Rule(".block.{k}.1.", ".block.{k}.norm."),
            Rule("^classifier_cnn.0.", "^head.cnn.fc1."),
            Rule("^classifier_cnn.3.", "^head.cnn.fc2."),
            Rule("^classifier_merge.1.", "^head.merge.fc1."),
            Rule("^classifier_merge.4.", "^head.merge.fc2."),
            *pointwise(".block.{k}.fc1", ".block.{k}.fc2"),
        ),
    ),
)

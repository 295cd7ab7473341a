"""Sparsifiner on ImageNet-1k, the 45 epochs in which the authors tune a DeiT-S or LV-ViT-S
(arXiv:2303.13755, section 4.1).

Published: accuracies are in the paper's figures only, at most 0.4 % top-1 below DeiT-S's 79.8 %.
Here: not yet run. The authors fit the predictors to a teacher's attention for 5 epochs before, and
distil the teacher's tokens in these 45, which this recipe does not do: it begins with
`model.weights` that did, and a teacher's logits.
Run: python -m vitlab.train --config=configs/sparsifiner_imagenet.py:small --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="small"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"sparsifiner_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=8e-5, end_lr=2e-6, warmup="3 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1344,  # 8 devices of 168
            duration="45 epochs",
        )
    )

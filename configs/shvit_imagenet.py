"""SHViT on ImageNet-1k for 300 epochs, after the authors' code (arXiv:2401.16456, section 4.1).

Published: s1 72.8, s2 75.2, s3 77.4, s4 79.4 % top-1. Here: not yet run.
Augmentation, mixing and weight averaging are DeiT's. The paper also clips gradients adaptively
(0.02), which this recipe leaves out. The family has no drop path. The weight decay is that of s1;
s2 has 0.032, s3 0.035, s4 0.03.
Run: python -m vitlab.train --config=configs/shvit_imagenet.py:s1 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="s1"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"shvit_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25, repeats=3),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=4e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.025, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.99996,
            batch_size=2048,
            duration="300 epochs",
        )
    )

"""VAN on ImageNet-1k for 300 epochs, after the authors' train.sh (arXiv:2202.09741, section 4.1).

Published: b0 75.4, b1 81.1, b2 82.8, b3 83.9 % top-1. Here: not yet run.
Augmentation and mixing are Swin's. The drop path rate is the variant's own.
Run: python -m vitlab.train --config=configs/van_imagenet.py:b0 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="b0"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"van_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", interpolation="random", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-6, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

"""VMamba on ImageNet-1k for 300 epochs, after the authors' classification/config.py
(arXiv:2401.10166, section 5.1).

Published: tiny_s1l8 82.6, small_s2l15 83.6, base_s2l15 83.9 % top-1. Here: not yet run. All is
Swin's but the average of the weights; drop path is the variant's own.
Run: python -m vitlab.train --config=configs/vmamba_imagenet.py:tiny_s1l8 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="tiny_s1l8"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"vmamba_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=5.0),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.9999,
            batch_size=1024,
            duration="300 epochs",
        )
    )

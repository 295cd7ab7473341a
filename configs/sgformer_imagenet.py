"""SG-Former on ImageNet-1k for 300 epochs, after the authors' commands (arXiv:2308.12216, section
4.1).

Published: small 83.2, medium 84.1, base 84.7 % top-1. Here: not yet run. Augmentation and mixing
are DeiT's. Drop path is the variant's own.
Run: python -m vitlab.train --config=configs/sgformer_imagenet.py:small --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="small"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"sgformer_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.99992,
            batch_size=1024,
            duration="300 epochs",
        )
    )

"""EfficientViT (MSRA) on ImageNet-1k for 300 epochs, after the authors' code (arXiv:2305.07027).

Published: m0 63.2, m1 68.4, m2 70.8, m3 73.4, m4 74.3, m5 77.1 % top-1. Here: not yet run.
Augmentation, mixing and weight averaging are DeiT's. The paper also clips gradients adaptively
(0.02), which this recipe leaves out. The family has no drop path.
Run: python -m vitlab.train --config=configs/efficientvit_imagenet.py:m0 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="m0"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"efficientvit_{variant}", dtype="bfloat16"),
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

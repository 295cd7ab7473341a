"""OverLoCK on ImageNet-1k for 300 epochs, after the authors' scripts (arXiv:2502.20087).

Published: xt 82.7, t 84.2, s 84.8, b 85.1 % top-1. Here: not yet run.
The paper also has a second loss on the overview, which this recipe leaves out. The drop path rate
is the variant's own.
Run: python -m vitlab.train --config=configs/overlock_imagenet.py:xt --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="xt"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"overlock_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=2e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=5.0),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.9999,
            batch_size=2048,
            duration="300 epochs",
        )
    )

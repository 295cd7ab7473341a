"""Swin v2 on ImageNet-1k for 300 epochs, after the authors' configs/swinv2 (arXiv:2111.09883).

Published: tiny_window8_256 81.8, small_window8_256 83.7, base_window8_256 84.2 % top-1 (the
authors' README). Here: not yet run.
The drop path rate is the variant's own.
Run: python -m vitlab.train --config=configs/swinv2_imagenet.py:tiny_window8_256 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="tiny_window8_256"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"swinv2_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=5.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

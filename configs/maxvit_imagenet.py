"""MaxViT on ImageNet-1k for 300 epochs, after the authors' hp/vision_i1k.py (arXiv:2204.01697).

Published: tiny 83.62, small 84.45, base 84.95, large 85.17 % top-1. Here: not yet run.
RandAugment is timm's version of the paper's (2 operations, magnitude 15), without Cutout. The drop
path rate is the variant's own.
Run: python -m vitlab.train --config=configs/maxvit_imagenet.py:tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"maxvit_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m15-mmax15"),
            mix=MixConfig(mixup_alpha=0.8),
            optimizer=OptimizerConfig(peak_lr=3e-3, end_lr=1e-5, warmup="10000 steps", weight_decay=0.05, clip_norm=1.0),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.9999,
            batch_size=4096,
            duration="300 epochs",
        )
    )

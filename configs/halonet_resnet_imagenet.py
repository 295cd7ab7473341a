"""timm's HaloNets on ImageNet-1k for 300 epochs, an AdamW recipe of this project's.

Published: halonet26t 79.1, halonet50ts 81.6 % top-1, in timm, whose recipe (a1h, LAMB) is not this
one. Here: not yet run.
Run: python -m vitlab.train --config=configs/halonet_resnet_imagenet.py:halonet26t --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="halonet26t"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=variant, dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

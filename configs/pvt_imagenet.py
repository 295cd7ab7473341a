"""PVT on ImageNet-1k for 300 epochs, after the authors' configs/pvt (arXiv:2102.12122, section
5.1).

Published: tiny 75.1, small 79.8, medium 81.2, large 81.7 % top-1. Here: not yet run. Drop path is
the variant's own; the authors clip at 1 for medium and large.
Run: python -m vitlab.train --config=configs/pvt_imagenet.py:tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"pvt_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

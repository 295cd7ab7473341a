"""PVT v2 on ImageNet-1k for 300 epochs, after the authors' configs/pvt_v2 (arXiv:2106.13797,
section 4.1).

Published: b0 70.5, b1 78.7, b2 82.0, b2_li 82.1, b3 83.1, b4 83.6, b5 83.8 % top-1. Here: not yet
run. Drop path is the variant's own; the authors clip at 1 for b3 to b5.
Run: python -m vitlab.train --config=configs/pvt_v2_imagenet.py:b2 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="b2"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"pvt_v2_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

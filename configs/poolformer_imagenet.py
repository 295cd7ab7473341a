"""PoolFormer on ImageNet-1k for 300 epochs, after the authors' README (arXiv:2111.11418, section
4.1).

Published: s12 77.2, s24 80.3, s36 81.4, m36 82.1, m48 82.5 % top-1. Here: not yet run. Drop path is
the variant's own.
Run: python -m vitlab.train --config=configs/poolformer_imagenet.py:s12 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="s12"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"poolformer_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

"""EViT on ImageNet-1k for 300 epochs, after the authors' README (arXiv:2202.07800, section 4.1).

Published: deit_small_k09 79.8, deit_small_k08 79.8, deit_small_k07 79.5, deit_small_k06 78.9,
deit_small_k05 78.5 % top-1. Here: not yet run. All is DeiT's, repeated augmentation included; the
authors begin with all tokens and lower the keep rate up to epoch 110.
Run: python -m vitlab.train --config=configs/evit_imagenet.py:deit_small_k07 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="deit_small_k07"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"evit_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25, repeats=3),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )

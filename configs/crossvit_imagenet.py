"""CrossViT on ImageNet-1k for 300 epochs, after the authors' code (arXiv:2103.14899, section 4.1).

Published: tiny 73.4, small 81.0, base 82.2, 9 73.9, 15 81.5, 18 82.5 % top-1. Here: not yet run.
Augmentation and mixing are DeiT's. The drop path rate is the variant's own.
Run: python -m vitlab.train --config=configs/crossvit_imagenet.py:small --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="small"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"crossvit_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25, repeats=3),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=4e-3, end_lr=1e-5, warmup="30 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=4096,
            duration="300 epochs",
        )
    )

"""Vim on ImageNet-1k for 300 epochs, after the authors' pt-vim-t.sh and pt-vim-s.sh
(arXiv:2401.09417, section 4.1).

Published: tiny 76.1, small 80.5, base 81.9 % top-1. Here: not yet run. All is DeiT's; drop path is
the variant's own, and the decay is 0.1 for tiny.
Run: python -m vitlab.train --config=configs/vim_imagenet.py:tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict

DECAY = {"tiny": 0.1, "small": 0.05, "base": 0.05}


def get_config(variant="tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"vim_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25, repeats=3),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=DECAY[variant], clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.99996,
            batch_size=1024,
            duration="300 epochs",
        )
    )
